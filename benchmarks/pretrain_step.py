"""One training step of SimCLR+Elevation, here and in PyTorch: gather, views, gradient, update.

python benchmarks/pretrain_step.py [--batch 32] [--size 100] [--width 1] [--repeats 5] [--csv F]

The peers are those of `torch_peer.py`: the same architecture, views and loss, with data and
augmentation on the device (eager on a CPU, with bfloat16 autocast both eager and compiled on a
GPU); and the reference pipeline, torchvision's transforms in workers. Each side has a process of
its own; they take turns, so that ratios hold on a noisy machine where times don't. FLOP are XLA's
count of our step; the ceiling is a matrix product measured in the same process.
"""

import argparse
import csv
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from elev_ssl_jax.runtime.huge_pages import use_huge_pages

CHIPS = 512


def make_chips(size: int, count: int = CHIPS) -> dict[str, np.ndarray]:
    """Chips of noise; what they show doesn't matter to the time."""
    rng = np.random.default_rng(0)
    cells = round(size * 0.33)
    return {
        "image": rng.integers(0, 6000, (count, size, size, 3)).astype(np.uint16),
        "elevation": rng.uniform(0, 3000, (count, cells, cells)).astype(np.float32),
    }


def ours(args):
    """A function that takes a step and returns its loss, and what is known of it."""
    use_huge_pages()  # as main does
    import jax
    import jax.numpy as jnp

    from elev_ssl_jax import augment
    from elev_ssl_jax.config import default
    from elev_ssl_jax.pretraining import elevation
    from elev_ssl_jax.pretraining.step import make_train_step
    from elev_ssl_jax.runtime import batches, sharding
    from elev_ssl_jax.runtime.optimizer import make_optimizer
    from elev_ssl_jax.runtime.train_state import TrainState

    config = default()
    config.batch_size, config.model.width = args.batch, args.width
    chips, mesh = make_chips(args.size), sharding.make_mesh(jax.devices()[:1])
    method = elevation.make(config, chips, mesh)
    steps_per_epoch = CHIPS // args.batch
    optimizer, schedule = make_optimizer(
        config.optimizer, epochs=200, steps_per_epoch=steps_per_epoch, batch_size=args.batch
    )

    @jax.jit
    def init():
        few = {name: jnp.asarray(chips[name][:2]) for name in method.reads}
        views = method.views(augment.sample_keys(0, 0, 2), few, True)
        variables = method.model.init(jax.random.key(0), *views.inputs, train=True)
        return TrainState.create(variables, optimizer)

    state = init()
    train_step = make_train_step(config, method, optimizer, schedule, mesh)
    stream = batches.resident_batches(chips, mesh, 0, args.batch, 0)
    compiled = train_step.lower(state, next(stream), 0).compile()
    dtype = method.model.dtype
    side = 8192 if jax.default_backend() == "gpu" else 2048
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        rates.append(2 * side**3 / (time.perf_counter() - start))

    def step():
        nonlocal state
        state, terms = compiled(state, next(stream), 0)
        return terms["loss"]

    about = {
        "flop": compiled.cost_analysis()["flops"],
        "ceiling": statistics.median(rates),
        "chip": jax.devices()[0].device_kind,
        "version": f"jax {jax.__version__}",
    }
    return step, about, lambda: (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def theirs(args, name):
    """Likewise, of a peer."""
    import torch
    from torch_peer import make_reference_step, make_step

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    common = make_chips(args.size), args.batch, device, args.width
    if name == "reference":
        step = make_reference_step(*common, workers=os.cpu_count() or 1)
    else:
        torch.set_float32_matmul_precision("high")
        step = make_step(*common, compiled=name == "compiled")
    gpu = device == "cuda"
    peak = torch.cuda.max_memory_allocated if gpu else lambda: None
    return step, {"version": f"torch {torch.__version__}"}, peak


def child(args) -> None:
    """Takes as many steps as each line of input says, and tells the seconds."""
    start = time.perf_counter()
    step, about, peak = ours(args) if args.child == "ours" else theirs(args, args.child)
    for _ in range(3):
        float(step())
    about["seconds_to_start"] = time.perf_counter() - start
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        float(step())  # memory and caches are those of the other sides
        start = time.perf_counter()
        for _ in range(int(line)):
            loss = step()
        loss = float(loss)  # the device is done
        seconds = time.perf_counter() - start
        memory = peak() or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"seconds": seconds, "loss": loss, "memory": memory}), flush=True)


class Side:
    """One of the processes."""

    def __init__(self, name: str, more: list[str], script: str = __file__):
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.process = subprocess.Popen(
            [sys.executable, script, *more, f"--child={name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.about = self._answer()

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.process.args} ended early")

    def run(self, steps: int) -> dict:
        """Takes steps; what the process says of them."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self._answer()


def append(path: Path, rows: list[dict]) -> None:
    """Adds rows to a CSV file, which they begin if there is none."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        if new:
            writer.writeheader()
        writer.writerows(rows)


def chip_name(kind: str) -> str:
    """How results name what they were measured on."""
    if kind.lower() == "cpu":
        return f"CPU, {os.cpu_count()} cores ({platform.machine()})"
    return kind


def make_parser(doc: str) -> argparse.ArgumentParser:
    """What this benchmark and `epoch.py` are asked."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--csv", type=Path, help="to append the results to")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """The command."""
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of each turn, about")
    parser.add_argument(
        "--peers", nargs="*", help="of eager, compiled and reference (default: by device)"
    )
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    more = [f"--batch={args.batch}", f"--size={args.size}", f"--width={args.width}"]
    sides = {"ours": Side("ours", more)}
    on_cpu = sides["ours"].about["chip"].lower() == "cpu"
    peers = args.peers
    if peers is None:
        peers = ["eager"] + ["compiled"] * (not on_cpu)
        if importlib.util.find_spec("torchvision"):
            peers.append("reference")
        else:
            print("without torchvision there is no reference pipeline")
    sides |= {name: Side(name, more) for name in peers}
    chip = chip_name(sides["ours"].about["chip"])
    print(f"{chip}; batch {args.batch}, {args.size} pixels, width {args.width:g}")

    steps = {
        name: max(1, round(args.seconds / side.run(1)["seconds"])) for name, side in sides.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    memory = {}
    for turn in range(args.repeats):
        for name, side in sides.items():
            answer = side.run(steps[name])
            rates[name].append(steps[name] * args.batch / answer["seconds"])
            memory[name] = answer["memory"]
        line = ", ".join(f"{name} {rate[-1]:.1f}" for name, rate in rates.items())
        print(f"turn {turn + 1}: images/s {line}", flush=True)

    ours_about = sides["ours"].about
    flop = ours_about["flop"] / args.batch * statistics.median(rates["ours"])
    share = flop / ours_about["ceiling"]
    print(f"ours: {flop / 1e9:,.0f} GFLOP/s, {share:.0%} of a matrix product's")
    rows = []
    for name, side in sides.items():
        ratios = sorted(a / b for a, b in zip(rates["ours"], rates[name], strict=True))
        print(
            f"{name:<9} {side.about['version']}: {statistics.median(rates[name]):,.1f} images/s, "
            f"{memory[name] / 2**20:,.0f} MiB, {side.about['seconds_to_start']:.0f} s to start"
            + (
                f"; ours is {statistics.median(ratios):.2f} times as fast "
                f"({ratios[0]:.2f}-{ratios[-1]:.2f})"
                if name != "ours"
                else ""
            )
        )
        rows.append(
            {
                "chip": chip,
                "side": name,
                "version": side.about["version"],
                "batch": args.batch,
                "size": args.size,
                "width": args.width,
                "images_per_second": f"{statistics.median(rates[name]):.1f}",
                "ours_over_it": f"{statistics.median(ratios):.2f}",
                "lowest": f"{ratios[0]:.2f}",
                "highest": f"{ratios[-1]:.2f}",
                "memory_mib": f"{memory[name] / 2**20:.0f}",
                "seconds_to_start": f"{side.about['seconds_to_start']:.0f}",
                "share_of_ceiling": f"{share:.2f}" if name == "ours" else "",
            }
        )
    if args.csv:
        append(args.csv, rows)
    for side in sides.values():
        side.process.kill()


if __name__ == "__main__":
    main()
