"""The pre-training loop. It knows nothing of TFDS or TensorFlow: data and writer are arguments."""

import functools
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from elev_ssl_jax import (
    augment,
    checkpoint,
    evaluate,
    files,
    objective,
    pictures,
    run_folder,
    scores,
    sharding,
)
from elev_ssl_jax.data import pipeline
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.optimizer import make_optimizer, rate_change
from elev_ssl_jax.train_state import TrainState
from elev_ssl_jax.train_step import make_train_step

Arrays = dict[str, np.ndarray]
PICTURED = 6  # chips in a picture


class Chips(NamedTuple):
    """What a run learns from and is judged by: `image`, `elevation`, and labels of any kind."""

    train: Any  # arrays, or a source.Split
    heldout: Arrays
    labelled: Arrays | None = None  # for the linear probe


def pretrain(config: Any, workdir: Path, chips: Chips, writer: Any) -> dict[str, float]:
    """Trains, evaluates and saves; called again with the same folder, goes on where it stopped.

    Args:
      config: The run's configuration, checked.
      workdir: Where checkpoints, pictures and `results.json` go.
      chips: The data.
      writer: Has `write_scalars(step, scalars)` and `flush()`.

    Returns:
      The final scores, as in `results.json`.

    Raises:
      InputError: Data and configuration don't fit each other, or the loss is no longer finite.
    """
    mesh = sharding.make_mesh()
    with sharding.together():
        steps_per_epoch = check_fit(config, chips)
        sample = sample_of(chips.train)
        mean_elevation = _mean_elevation(config, sample)
        data = _fingerprints(chips, sample)
    where = f"{config.data.name} in {config.data.dir or 'the default data.dir'}"
    sharding.check_same(f"the data ({where})", data)
    with sharding.together():
        if sharding.is_first():
            run_folder.check_same_run(workdir, config, data)

    total_steps = config.epochs * steps_per_epoch
    image_shape, elevation_shape = (chips.heldout[k].shape[1:] for k in ("image", "elevation"))
    model = objective.make_model(config, elevation_shape)
    optimizer, schedule = make_optimizer(
        config.optimizer,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=config.batch_size,
    )

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def init():
        keys = augment.sample_keys(config.seed, 0, 2)
        arrays = (jnp.zeros((2, *shape)) for shape in (image_shape, elevation_shape))
        views = objective.make_views(config, keys, *arrays)
        variables = model.init(jax.random.key(config.seed), views.images, views.patches, train=True)
        if config.objective.alpha > 0:
            # At zero metres a network of mountains would first learn their mean, for long.
            head = variables["params"]["elevation_decoder"]["head"]
            start = mean_elevation / config.data.elevation_scale
            head["bias"] = jnp.full_like(head["bias"], start)
        return TrainState.create(variables, optimizer)

    train_step = make_train_step(config, model, optimizer, schedule, mesh)
    predict = evaluate.make_predict(config, model, mesh)

    def measure(variables):
        return scores.measure(predict, variables, chips.heldout, chips.labelled, mean_elevation)

    about = checkpoint.describe(
        config,
        steps=total_steps,
        data=data,
        image_shape=image_shape,
        elevation_shape=elevation_shape,
    )

    # Closing waits for a save under way, also when the loop ends in an error.
    with checkpoint.open_checkpoints(workdir, config.checkpoint.keep) as checkpoints:
        state, before = checkpoint.restore_latest(checkpoints, init(), mesh)
        first_step = int(state.step)
        if first_step > total_steps:
            raise InputError(
                f"config.epochs is {config.epochs}, but {workdir} has learned for "
                f"{first_step // steps_per_epoch} already; use another --workdir"
            )
        with sharding.together():
            if sharding.is_first():
                run_folder.claim(workdir, config, data)
        batches, how = pipeline.make_batches(
            chips.train,
            mesh,
            seed=config.seed,
            batch_size=config.batch_size,
            resident_gib=config.data.resident_gib,
            first_step=first_step,
        )
        count = _length(chips.train)
        print(
            f"{_topology(config, model, mesh, state.params)}\n{count} chips to learn from, {how}\n"
            f"{config.epochs} epochs of {steps_per_epoch} steps; each leaves out "
            f"{count - steps_per_epoch * config.batch_size} chips that fill no batch, others each "
            "time"
        )
        if first_step:
            print(f"going on after step {first_step} of {total_steps}")
            if (then := before["config"]["epochs"]) != config.epochs:
                print(rate_change(config, then, steps_per_epoch, first_step))
        else:
            print(_overview(state.params))
            if sharding.is_first():
                _draw_views(config, workdir / "views.png", sample)

        with tqdm(
            total=total_steps * config.batch_size,
            initial=first_step * config.batch_size,
            unit=" images",
            unit_scale=True,
            desc="pre-training",
        ) as bar:
            log = _Log(config, writer, bar, mesh.size, first_step)
            for step in range(first_step + 1, total_steps + 1):
                state, scalars = train_step(state, next(batches))
                last = step == total_steps
                saves = last or step % (config.checkpoint.every_epochs * steps_per_epoch) == 0
                judges = not last and step % (config.log.eval_every_epochs * steps_per_epoch) == 0
                if saves or judges or step % config.log.every_steps == 0:
                    log.put(step, scalars)
                if saves or judges:
                    log.flush()  # a state that is not finite ends the run and is never saved
                if saves:
                    checkpoint.save(checkpoints, state, about)
                if judges:
                    writer.write_scalars(step, measure(state.variables)[0])
                    log.restart_clock()

    results, outputs = measure(state.variables)
    untrained, _ = measure(init().variables)
    results |= {f"random_{k}": v for k, v in untrained.items() if k.startswith("probe_")}
    writer.write_scalars(total_steps, results)
    writer.flush()
    if not sharding.is_first():
        return results
    files.write_text(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    if outputs.elevation is not None:
        few = {k: v[:PICTURED] for k, v in chips.heldout.items()}
        images = _displayable(config, few["image"])
        fields = few["elevation"], outputs.elevation[:PICTURED]
        known = ~np.isnan(few["elevation"])
        reliefs = (evaluate.level_and_relief(field, known)[1] for field in fields)
        pictures.draw_elevation(workdir / "elevation.png", images, *fields, *reliefs)
    print(scores.table(results, len(chips.heldout["image"]), config.data.eval_split))
    print("pictures: " + ", ".join(str(p) for p in sorted(workdir.glob("*.png"))))
    return results


def check_fit(config: Any, chips: Chips) -> int:
    """Steps in an epoch.

    Raises:
      InputError: The data, the configuration and the devices don't fit one another.
    """
    data, count = config.data, _length(chips.train)
    check_sizes(config, count, chips.heldout["image"].shape[1:])
    if config.objective.alpha > 0 and np.isnan(chips.heldout["elevation"]).all():
        raise InputError(f"{data.eval_split} of {data.name} has no elevation at all")
    return count // config.batch_size


def check_sizes(config: Any, count: int, image_shape: tuple[int, ...], *, prefix: str = "") -> None:
    """Refuses what doesn't fit `count` chips of images [H, W, C], or the devices.

    `prefix` comes before the names of fields of pre-training, where an experiment has others.

    Raises:
      InputError: Names the field.
    """
    data, size, devices = config.data, config.batch_size, jax.device_count()
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
    height, width, bands = image_shape
    objective.check_image_size(config, height, width)
    if any(not 0 <= band < bands for band in data.rgb):
        raise InputError(f"config.data.rgb is {data.rgb}, but the images have {bands} bands")


class _Log:
    """Metrics to the writer and the bar, one report late, so that no step waits for the host."""

    def __init__(self, config, writer, bar, devices, first_step):
        self.config, self.writer, self.bar, self.devices = config, writer, bar, devices
        self.reported, self.pending = first_step, None
        self.clock: float | None = None  # starts after the first report, which the compiler delays

    def put(self, step, scalars):
        self.flush()
        self.pending = step, scalars

    def flush(self):
        if self.pending is None:
            return
        step, scalars = self.pending
        self.pending = None
        values = {name: float(value) for name, value in scalars.items()}
        images = (step - self.reported) * self.config.batch_size
        self.reported = step
        if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])):
            raise InputError(
                f"the loss is {values['loss']} at step {step}, its gradient's norm "
                f"{values['gradient_norm']}; lower optimizer.learning_rate "
                f"(it is {self.config.optimizer.learning_rate}) or look at the data's values; the "
                "last checkpoint is from before"
            )
        now = time.monotonic()
        if self.clock is not None:
            rate = images / (now - self.clock) / self.devices
            values["images_per_second_per_device"] = rate
        self.clock = now
        self.writer.write_scalars(step, values)
        self.bar.update(images)
        shown = {"loss": f"{values['loss']:.3f}"}
        if "elevation_loss" in values:
            metres = self.config.data.elevation_scale * math.sqrt(values["elevation_loss"])
            if self.config.loss.elevation_reduction == "mean":
                shown["elevation"] = f"{metres:.0f} m"
        self.bar.set_postfix(shown)

    def restart_clock(self):
        """Leaves out time that was not spent on steps."""
        self.clock = None


def _length(train) -> int:
    return len(train["image"]) if isinstance(train, dict) else len(train)


def sample_of(train: Any, count: int = 2048) -> Arrays:
    """`image` and `elevation` of some training chips, evenly spread: all, if there are so few."""
    positions = np.unique(np.linspace(0, _length(train) - 1, count).astype(int))
    if isinstance(train, dict):
        return {name: train[name][positions] for name in ("image", "elevation")}
    records = [train[i] for i in positions]
    return {name: np.stack([r[name] for r in records]) for name in ("image", "elevation")}


def _fingerprints(chips, sample) -> dict[str, str]:
    """Of all chips; a sample stands for those to train on, which may be too many to read."""
    known = {"heldout": chips.heldout, "labelled": chips.labelled}
    return {
        "train": run_folder.fingerprint(sample, _length(chips.train)),
        **{role: run_folder.fingerprint(arrays) for role, arrays in known.items() if arrays},
    }


def _mean_elevation(config, sample) -> float:
    """Mean elevation in metres of the training sample: what a model without eyes would say."""
    known = sample["elevation"][~np.isnan(sample["elevation"])]
    if not known.size:
        if config.objective.alpha > 0:
            raise InputError(
                f"no elevation in any of {len(sample['elevation'])} chips of {config.data.split} "
                f"of {config.data.name}; check the DEM that the chips were cut with"
            )
        return math.nan
    return float(known.mean(dtype=np.float64))


def _topology(config, model, mesh, params) -> str:
    """Who computes what, and what goes between devices in each step."""
    lines = [
        f"{jax.process_count()} process(es), {mesh.size} device(s) ({jax.devices()[0].device_kind})"
        f" in a mesh of {dict(mesh.shape)}, computing in {model.dtype.name}",
        f"of each batch of {config.batch_size}, {config.batch_size // mesh.size} chips on each "
        "device" + (f", {size // mesh.size} at a time" if (size := config.microbatch_size) else ""),
    ]
    if mesh.size > 1:
        # Rows of embeddings of the two views, and float32.
        patches = config.objective.local.patches
        rows = [(1, model.projection), (patches, model.local_projection)]
        embeddings = sum(8 * config.batch_size * n * units[-1] for n, units in rows if units)
        gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        lines.append(
            f"each step gathers {embeddings / 1e6:,.2f} MB of embeddings, forward and backward, "
            f"and sums {gradient / 1e6:,.1f} MB of gradient over the devices"
        )
    return "\n".join(lines)


def _overview(params) -> str:
    """Parameters by part of the model."""
    counts = {
        part: sum(leaf.size for leaf in jax.tree.leaves(leaves)) for part, leaves in params.items()
    }
    counts["in all"] = sum(counts.values())
    return "\n".join(f"  {part:<20}{count:>12,} parameters" for part, count in counts.items())


def _displayable(config, images):
    scaled = augment.normalize(jnp.asarray(images), config.data.value_range)
    return pictures.displayable(np.asarray(scaled), tuple(config.data.rgb))


def _draw_views(config, path, sample):
    few = {k: v[:PICTURED] for k, v in sample.items()}

    @jax.jit
    def make(images, elevation):
        keys = augment.sample_keys(config.seed, 0, len(images))
        return objective.make_views(config, keys, images, elevation)

    views = make(few["image"], few["elevation"])
    alpha = config.objective.alpha
    titles = ["view 1", "view 2"] * (alpha < 1) + ["elevation view"] * (alpha > 0)
    patches = None
    if views.patches is not None:
        shares = (np.asarray(share) for share in (views.patches.rows, views.patches.columns))
        centres = [share @ (np.arange(share.shape[-1]) + 0.5) for share in shares]
        patches = np.stack(centres, axis=-1), config.objective.local.patch_size
    pictures.draw_views(
        path,
        _displayable(config, few["image"]),
        pictures.displayable(np.asarray(views.images), tuple(config.data.rgb)),
        np.asarray(views.elevation) * config.data.elevation_scale,
        titles,
        patches,
    )
