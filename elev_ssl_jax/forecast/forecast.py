"""What a run will take of its devices, by the compiler's estimates."""

import re
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from jax.sharding import Mesh

from elev_ssl_jax.errors import InputError
from elev_ssl_jax.forecast import hlo
from elev_ssl_jax.forecast.programs import Stage
from elev_ssl_jax.runtime import accelerators

Facts = dict[str, Any]
# Parts of a step by the scopes of its operations, the first that fits.
_PARTS = {
    "views": ("views",),
    "encoder": ("encoder",),
    "decoder": ("decoder",),
    "loss": ("loss", "projection", "local_head", "patch_means"),
    "optimizer": ("optimizer",),
}
LEAST = {"optimization_level": 9}  # of the compiler's efforts, which it calls O0
# What the whole takes that its longest stage says best.
_OF_LONGEST = (
    *("parameters", "model_flops_per_chip", "estimated_step_ms", "flop_bound_ms", "parts_ms"),
    *("chips_per_second", "collectives", "dataset_copies", "serial_loops", "bytes_accessed_gb"),
)


def forecast(
    stages: list[Stage],
    mesh: Mesh,
    waiting: Callable[[str], AbstractContextManager] = nullcontext,
    quick: bool = False,
) -> Facts:
    """Compiles the programs of a run, and says what the compiler says of them, as plain numbers.

    Args:
      stages: Of the run.
      mesh: The devices.
      waiting: Is entered with the name of each stage while that is compiled.
      quick: With the compiler's least effort, in a fraction of its time. What it makes of a TPU's
        program then takes several times as long, so that nothing is said of time and traffic.

    Returns:
      `stages`, what there is to say of each, and of the whole whether it `fits`, the most memory
      that a stage takes, the hours of all, and the rest as its longest stage has it. Numbers of
      time are None if `quick`, and for devices that the compiler has no estimate of.

    Raises:
      InputError: The compiler gives up for another reason than memory.
    """
    kind = mesh.devices.flat[0].device_kind
    chip = accelerators.of_kind(kind)
    found: list[Facts] = []
    for stage in stages:
        with waiting(stage.name):
            found.append({"stage": stage.name} | _of_stage(stage, chip, quick))
    hours, fits = ([part[name] for part in found] for name in ("hours", "fits"))
    known = None not in hours
    longest = max(found, key=lambda part: part["hours"] or 0)
    return {
        "device": chip.name if chip else kind,
        "quick": quick,
        "devices": mesh.size,
        "device_memory_gib": chip.memory_gib if chip else None,
        "fits": None if None in fits else all(fits),
        "memory_gib_per_device": max(part["memory_gib_per_device"] for part in found),
        "hours": sum(hours) if known else None,
        "device_hours": sum(hours) * mesh.size if known else None,
        **{name: longest[name] for name in _OF_LONGEST},
        "stages": found,
    }


def _of_stage(stage: Stage, chip: accelerators.Accelerator | None, quick: bool) -> Facts:
    facts: Facts = dict.fromkeys((*_OF_LONGEST, "hours"))
    facts |= {
        "parameters": stage.params,
        "model_flops_per_chip": stage.flop,
        "resident_gib": stage.resident / 2**30,
        "steps": stage.steps,
        "batch_size": stage.batch_size,
        "devices_of_a_step": stage.devices,
    }
    try:
        programs = [p.compile(LEAST if quick else None) for p in (stage.step, stage.gather) if p]
    except jax.errors.JaxRuntimeError as error:
        needed = _needed(str(error))
        if needed is None:
            raise InputError(f"the compiler gave up: {str(error).splitlines()[0]}") from error
        return facts | {"fits": False, "memory_gib_per_device": needed + stage.resident / 2**30}
    memory = [_memory(program) for program in programs]
    most = memory[0] + stage.resident
    if stage.gather:  # its chips are among its arguments
        most = max(most, memory[1])
    gib = most / 2**30
    texts = [program.as_text() for program in programs]
    return (
        facts
        | {"memory_gib_per_device": gib, "fits": None if chip is None else gib <= chip.memory_gib}
        | _traffic(texts)
        | {
            "bytes_accessed_gb": None if quick else _accessed(programs) / 1e9,
            "dataset_copies": _copies(texts[1], stage.resident) if stage.gather else 0,
        }
        | (_time(texts, chip, stage) if chip and chip.clock_ghz and not quick else {})
    )


def _needed(error: str) -> float | None:
    """GiB that a compiler which refuses a program says that it needs."""
    number = r"([\d.]+)([MGT])"
    for said in (rf"Used {number}i?B? of {number}", rf"Hbm usage: {number}i?B?, exceeding"):
        if found := re.search(said, error):
            return float(found[1]) * {"M": 1 / 1024, "G": 1, "T": 1024}[found[2]]
    return None


def _memory(program):
    memory = program.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def _accessed(programs):
    return sum(program.cost_analysis()["bytes accessed"] for program in programs)


def _traffic(texts):
    """What goes between devices in a step, and loops that no one wrote."""
    found: dict[str, Any] = {}
    loops = []
    for text in texts:
        for exchange in hlo.collectives(text):
            kind = found.setdefault(exchange.kind, {"count": 0, "megabytes": 0.0, "parts": {}})
            megabytes, part = exchange.times * exchange.bytes / 1e6, _part(exchange)
            kind["count"] += exchange.times
            kind["megabytes"] += megabytes
            kind["parts"][part] = kind["parts"].get(part, 0) + megabytes
        loops += [loop for loop in hlo.loops(text) if not loop.scope.endswith("/while")]
    return {"collectives": found, "serial_loops": len(loops)}


def _copies(text, resident):
    """Operations of a gather that give as much as half of the chips."""
    # The last two bring what is small closer to the processor; it stays where it was.
    moved = ("parameter", "tuple", "get-tuple-element", "bitcast", "copy-start", "copy-done")
    large = (i for i in hlo.instructions(text) if i.kind not in moved)
    return sum(i.times for i in large if 2 * i.bytes >= resident)


def _time(texts, chip, stage):
    parts = Counter[str]()
    for i, text in enumerate(texts):
        for step in hlo.instructions(text):
            cycles = step.cycles / chip.clock_ghz / 1e6
            # Reading and writing what it gives, at the memory's best.
            moved = 2 * step.bytes / chip.bandwidth_gb / 1e6 if hlo.is_unpriced(step) else 0
            parts["gather" if i else _part(step)] += (cycles + moved) * step.times
        for exchange in hlo.collectives(text):
            parts["collectives"] += _exchange_ms(exchange, chip, stage.devices) * exchange.times
    milliseconds = sum(parts.values())
    return {
        "estimated_step_ms": milliseconds,
        "flop_bound_ms": stage.flop * stage.batch_size / stage.devices / chip.tflops / 1e9,
        "parts_ms": dict(parts.most_common()),
        "chips_per_second": stage.batch_size / milliseconds * 1e3,
        "hours": stage.steps * milliseconds / 3.6e6,
    }


def _exchange_ms(exchange, chip, devices):
    """At the best that a device's links do, in rings; nothing for the start of an exchange."""
    rounds = 2 if exchange.kind == "all-reduce" else 1
    return rounds * (devices - 1) / devices * exchange.bytes / chip.links_gb / 1e6


def _part(instruction):
    for part, scopes in _PARTS.items():
        if any(scope in instruction.scope for scope in scopes):
            return part
    return "rest"
