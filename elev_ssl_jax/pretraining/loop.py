"""The pre-training loop. It knows nothing of TFDS or TensorFlow: data and writer are arguments."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from elev_ssl_jax import augment, files, sensors, squares, storage
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.pretraining import elevation, methods, pictured, progress, scores
from elev_ssl_jax.pretraining.method import Method
from elev_ssl_jax.pretraining.step import make_train_step
from elev_ssl_jax.recipes import PROBES
from elev_ssl_jax.runtime import batches, checkpoint, cpu, run_folder, sharding, starting
from elev_ssl_jax.runtime.optimizer import make_optimizer, rate_change
from elev_ssl_jax.runtime.profile import profiled
from elev_ssl_jax.runtime.train_state import TrainState

Arrays = dict[str, np.ndarray]
MakeMethod = Callable[[Any, Arrays, Mesh], Method]


class Data(NamedTuple):
    """What a run learns from and is judged by: inputs, elevation, and labels of any kind."""

    train: batches.Chips
    heldout: batches.Chips
    labelled: batches.Chips | None = None  # for the probes
    validation: batches.Chips | None = None  # to choose the linear probe's C on


class _Parts(NamedTuple):
    """What a run is made of, before anything of it is written."""

    method: Method
    chips: int  # to learn from
    steps_per_epoch: int
    sample: Arrays  # some of the chips to learn from
    fingerprints: dict[str, str]


def pretrain(
    config: Any,
    workdir: Path,
    data: Data,
    writer: Any,
    make_method: MakeMethod = methods.make,
    profile: int = 0,
) -> dict[str, float]:
    """Trains, evaluates and saves; called again with the same folder, goes on where it stopped.

    Args:
      config: The run's configuration, checked.
      workdir: Where checkpoints, pictures and `results.json` go.
      data: The chips.
      writer: Has `write_scalars(step, scalars)` and `flush()`.
      make_method: Of the configuration, some chips and the devices.
      profile: How many steps to trace, into the folder `profile`.

    Returns:
      The final scores, as in `results.json`.

    Raises:
      InputError: Data and configuration don't fit each other, or the loss is no longer finite.
    """
    mesh = sharding.make_mesh()
    if config.objective.alpha and config.objective.target == "shuffled":
        data = data._replace(train=batches.shuffled(data.train, sensors.ELEVATION, config.seed))
    parts = _assemble(config, workdir, data, make_method, mesh)
    method, _, steps_per_epoch, sample, _ = parts
    total_steps = config.epochs * steps_per_epoch
    optimizer, schedule = make_optimizer(
        config.optimizer,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=config.batch_size,
    )

    init = make_init(method, optimizer, sample, mesh)
    train_step = make_train_step(config, method, optimizer, schedule, mesh)
    predict = scores.make_predict(config, method, mesh)
    mean = elevation.mean_elevation(sample)
    judge = functools.partial(
        scores.measure,
        predict,
        heldout=data.heldout,
        labelled=data.labelled,
        train_mean=mean,
        validation=data.validation,
        blocks=scores.blocks_of(data.heldout),
    )
    first, origin = init(config.seed), None
    if config.init_from and not checkpoint.steps(workdir):
        with sharding.together():
            descent = starting.descent_of(storage.run_path(config.init_from))
        sharding.check_same(f"the weights of config.init_from={config.init_from}", descent)
        variables, origin = _take_weights(config, first.variables, mesh)
        first = dataclasses.replace(first, **variables)
        print(f"starting from weights: {starting.words_of(origin)}")
        origin["scores"] = _of_probes(judge(variables))
    # Closing waits for a save under way, also when the loop ends in an error.
    with checkpoint.open_checkpoints(workdir, config.checkpoint.keep) as checkpoints:
        state, about = _start(config, workdir, parts, checkpoints, first, origin, mesh)
        first_step = int(state.step)
        stream, how = batches.make_batches(
            data.train,
            method.reads,
            mesh,
            seed=config.seed,
            batch_size=config.batch_size,
            resident_gib=config.data.resident_gib,
            first_step=first_step,
        )
        print(f"{parts.chips} chips to learn from, {how}")
        peak = progress.peak_rate(config, method, mesh, sample)
        with (
            progress.open_log(config, writer, mesh.size, first_step, total_steps, peak) as log,
            profiled(workdir / "profile", first_step + 1, profile) as trace,
        ):
            for step in range(first_step + 1, total_steps + 1):
                trace(step, state)
                with jax.profiler.StepTraceAnnotation("step", step_num=step):
                    state, scalars = train_step(state, next(stream), config.seed)
                last = step == total_steps
                saves = last or step % (config.checkpoint.every_epochs * steps_per_epoch) == 0
                judges = not last and step % (config.log.eval_every_epochs * steps_per_epoch) == 0
                if saves or judges or step % config.log.every_steps == 0:
                    log.put(step, scalars)
                if saves or judges:
                    log.flush()  # a state that is not finite ends the run and is never saved
                if saves:
                    checkpoint.save(checkpoints, state, about)
                    writer.flush()
                if judges:
                    writer.write_scalars(step, judge(state.variables))
                    log.restart_clock()

    results, untrained = judge(state.variables), judge(init(config.seed).variables)
    results |= {f"random_{k}": v for k, v in _of_probes(untrained).items()}
    if about["origin"]:
        results |= {f"start_{k}": v for k, v in about["origin"]["scores"].items()}
    writer.write_scalars(total_steps, results)
    writer.flush()
    few = sample_of(data.heldout, pictured.COUNT, spread=False)
    few = jax.device_get(squares.cut_chips(few, config.augment.crop_size))
    outputs, _ = next(predict(state.variables, few))
    if sharding.is_first():
        _finish(config, workdir, results, batches.length(data.heldout), few, outputs)
    return results


def make_init(
    method: Method, optimizer: optax.GradientTransformation, sample: Arrays, mesh: Mesh
) -> Callable[[int], TrainState]:
    """`first_state` of a seed, on every device."""
    return jax.jit(
        functools.partial(first_state, method, optimizer, sample),
        out_shardings=sharding.replicated(mesh),
        compiler_options=cpu.options_of_what_runs_once(sharding.platform(mesh)),
    )


def first_state(
    method: Method, optimizer: optax.GradientTransformation, sample: Arrays, seed: int | jax.Array
) -> TrainState:
    """What a pre-training begins with; the first two chips of `sample` say the shapes."""
    few = {name: jnp.asarray(sample[name][:2]) for name in method.reads}
    shown, _ = method.views(augment.sample_keys(seed, 0, 2), few, True)
    variables = method.model.init(jax.random.key(seed), *shown, train=True)
    return TrainState.create(variables, optimizer)


def check_weights(config: Any, method: Method, sample: Arrays) -> None:
    """Refuses weights of `config.init_from` that don't fit the method's model.

    Raises:
      InputError: As `starting.from_run`.
    """
    ours = jax.eval_shape(lambda: first_state(method, optax.identity(), sample, 0))
    _take_weights(config, ours.variables, None)


def _take_weights(config, variables, mesh) -> starting.Start:
    """`variables`, with those that `config.init_from` has in place of some, where they were."""
    start = starting.from_run(
        storage.run_path(config.init_from),
        variables,
        sensors.of(config),
        bands=config.init_bands,
        decoder=config.init_decoder,
        mesh=mesh,
    )
    if mesh is None:
        return start
    return start._replace(variables=sharding.place(start.variables, sharding.replicated(mesh)))


def _of_probes(scores):
    return {k: v for k, v in scores.items() if k.startswith(PROBES)}


def _assemble(config, workdir, data, make_method, mesh) -> _Parts:
    """Checks that all fits together, in all processes and with what the folder holds."""
    with sharding.together():
        count = batches.length(data.train)
        check_batches(config, count)
        sample = sample_of(data.train)
        method = make_method(config, sample, mesh)
        sensors.check_values(config, sample)
        some = sample_of(data.heldout, 4096)
        _check_heldout(config, method, sample, some)
        prints = {
            "train": fingerprint(config, sample, count),
            "heldout": run_folder.fingerprint(some, batches.length(data.heldout)),
        }
        for role in ("labelled", "validation"):
            if (chips := getattr(data, role)) is not None:
                few = sample_of(chips, 4096)
                prints[role] = run_folder.fingerprint(few, batches.length(chips))
    where = f"{config.data.name} in {config.data.dir or 'the default data.dir'}"
    sharding.check_same(f"the data ({where})", prints)
    with sharding.together():
        if sharding.is_first():
            run_folder.check_same_run(workdir, config, prints)
    return _Parts(method, count, count // config.batch_size, sample, prints)


def _check_heldout(config, method, sample, heldout):
    data = config.data
    for name in method.reads:
        shape = sample[name].shape[1:]
        if name not in heldout or heldout[name].shape[1:] != shape:
            theirs = heldout[name].shape[1:] if name in heldout else "not there"
            raise InputError(
                f"{name} of {data.split} of {data.name} is {shape}, and of {data.eval_split} "
                f"{theirs}; they must be alike"
            )
    if sensors.ELEVATION in method.reads and np.isnan(heldout[sensors.ELEVATION]).all():
        raise InputError(f"{data.eval_split} of {data.name} has no elevation at all")


def _start(
    config, workdir, parts, checkpoints, state, origin, mesh
) -> tuple[TrainState, dict[str, Any]]:
    """Claims the folder, and says what begins or goes on.

    Returns:
      The last state, or `state` if there is none, and what checkpoints are to say of the run.
    """
    method, count, steps_per_epoch, sample, prints = parts
    state, before = checkpoint.restore_latest(checkpoints, state, mesh)
    first_step, total_steps = int(state.step), config.epochs * steps_per_epoch
    if first_step > total_steps:
        raise InputError(
            f"config.epochs is {config.epochs}, but {workdir} has learned for "
            f"{first_step // steps_per_epoch} already; use another --workdir"
        )
    with sharding.together():
        if sharding.is_first():
            run_folder.claim(workdir, config, prints)
    print(
        f"{progress.topology(config, method, mesh, state.params, sample)}\n"
        f"{config.epochs} epochs of {steps_per_epoch} steps; each leaves out "
        f"{count % config.batch_size} chips that fill no batch, others each time"
    )
    if first_step:
        print(f"going on after step {first_step} of {total_steps}")
        if (then := before["config"]["epochs"]) != config.epochs:
            print(rate_change(config, then, steps_per_epoch, first_step))
    else:
        print(progress.overview(state.params))
        if sharding.is_first():
            pictured.draw_views(config, method, workdir / "views.png", sample)
    shapes = {name: sample[name].shape[1:] for name in method.reads}
    shapes = squares.cut_shapes(shapes, config.augment.crop_size)
    return state, checkpoint.describe(
        config,
        steps=total_steps,
        data=prints,
        shapes=shapes,
        origin=before.get("origin") if before else origin,
    )


def _finish(config, workdir, results, count, few, outputs) -> None:
    """Writes the scores of `count` chips, and draws `few` of them with what the model says."""
    files.write_text(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    if sensors.ELEVATION in outputs:
        path = workdir / "elevation.png"
        pictured.draw_elevation(config, path, few, outputs[sensors.ELEVATION])
    print(scores.table(results, count, config.data.eval_split))
    print("pictures: " + ", ".join(str(p) for p in sorted(workdir.glob("*.png"))))


def check_batches(config: Any, count: int, *, prefix: str = "", devices: int | None = None) -> None:
    """Refuses batches that `count` chips don't fill, or that the devices can't share.

    `prefix` comes before the names of fields of pre-training, where an experiment has others;
    `devices` is how many there are, if they aren't those at hand.

    Raises:
      InputError: Names the field.
    """
    data, size, devices = config.data, config.batch_size, devices or jax.device_count()
    if size > count:
        raise InputError(
            f"config.{prefix}batch_size is {size}, but {data.split} of {data.name} has only "
            f"{count} chips; lower it"
        )
    for name in ("batch_size", "microbatch_size"):
        if config[name] % devices:
            raise InputError(
                f"config.{prefix}{name} is {config[name]}; it must be a multiple of {devices} "
                "devices"
            )
    groups = config.model.batchnorm_groups
    if groups % devices and devices % groups:
        raise InputError(
            f"config.model.batchnorm_groups is {groups}; it must be a divisor or a multiple of "
            f"{devices} devices"
        )


def sample_of(chips: batches.Chips, count: int = 2048, *, spread: bool = True) -> Arrays:
    """Some chips, evenly spread or the first; all, if there are so few."""
    length = batches.length(chips)
    positions = np.arange(min(count, length))
    if spread:
        positions = np.unique(np.linspace(0, length - 1, count).astype(int))
    return batches.take(chips, positions)


def fingerprint(config: Any, sample: Arrays, count: int) -> str:
    """Of `count` chips to learn from, of which a sample stands for all: they may be too many."""
    names = {*config.data.inputs, sensors.ELEVATION} & sample.keys()
    return run_folder.fingerprint({name: sample[name] for name in names}, count)
