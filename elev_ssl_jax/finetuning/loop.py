"""Fine-tuning: first with a frozen encoder, then all of it (sections 5.1.2 and 5.2.2).

A fine-tuning is small, a few hundred chips in batches of eight, so that it runs on one device;
`experiment` spreads many over the devices. Its last epoch is what counts, or the best on chips to
validate on, if there are any: on the test chips nothing is selected.
"""

import functools
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from elev_ssl_jax import files, metrics, pictures, sensors, squares
from elev_ssl_jax.config import class_names
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import labelled, objective
from elev_ssl_jax.finetuning.calibration import Reliability
from elev_ssl_jax.finetuning.selection import SCORE, Best
from elev_ssl_jax.finetuning.step import (
    Labelled,
    Setup,
    encode_batch,
    frozen_step,
    full_step,
    judge,
)
from elev_ssl_jax.models.classifier import Classifier
from elev_ssl_jax.models.encoders import compute_dtype, encoder_type
from elev_ssl_jax.models.plain_unet import PlainUNet
from elev_ssl_jax.models.swin_unet import SwinUNet
from elev_ssl_jax.models.unet import UNet
from elev_ssl_jax.recipes import METRICS, OF_CHIPS
from elev_ssl_jax.runtime import batches, checkpoint, run_folder, sharding, starting
from elev_ssl_jax.runtime.optimizer import make_optimizer, rate_change
from elev_ssl_jax.runtime.train_state import TrainState

PICTURED = 6  # chips in a picture
_JUDGED = "judged.npz"  # of a run: confusion matrices by block of test ground


class Epoch(NamedTuple):
    """How far a fine-tuning has come."""

    stage: str  # "frozen" or "full"
    number: int  # of the epoch in its stage, from 1
    state: TrainState  # in the frozen stage, of the new layers alone
    loss: jax.Array  # of the last batch


def make_model(
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    platform: str,
    size: tuple[int, int] | None = None,
) -> UNet | Classifier:
    """The model that `config.model` and `config.finetune` describe.

    Args:
      config: The run's configuration.
      shapes: Of each input of a chip, as the network sees it.
      platform: Of the devices that are to compute.
      size: Of the images in pixels, if it isn't that of a chip.
    """
    encoder, classes = encoder_type(config, shapes), config.finetune.num_classes
    size = size or sensors.image_size(sensors.of(config), shapes)
    common = {"width": config.model.width, "dtype": compute_dtype(config, platform)}
    if config.finetune.head in OF_CHIPS:
        return Classifier(classes, encoder, **common)
    if config.finetune.head == "swin_unet":
        branches = len(config.data.inputs) if config.model.fusion == "late" else 1
        return SwinUNet(classes, size, encoder, branches=branches, **common)
    unet = {"unet": UNet, "plain_unet": PlainUNet}[config.finetune.head]
    return unet(classes, size, encoder, **common)


def make_setup(
    config: Any, shapes: Mapping[str, tuple[int, ...]], count: int, platform: str | None = None
) -> Setup:
    """The fine-tuning that `config` describes.

    Args:
      config: The run's configuration.
      shapes: Of each input of a chip, as it is stored.
      count: Chips in an epoch, those that come more than once included.
      platform: Of the devices that are to compute; None is those at hand.
    """
    shapes = squares.cut_shapes(shapes, config.augment.crop_size)
    make = functools.partial(
        make_optimizer,
        steps_per_epoch=steps_per_epoch(count, config.batch_size),
        batch_size=config.batch_size,
    )
    # Its rate is what it says; scaling, warm-up and decay are the full stage's, and so is the drop,
    # unless there is none.
    frozen = config.optimizer.copy_and_resolve_references()
    frozen.learning_rate = config.finetune.frozen_learning_rate
    frozen.scaling, frozen.warmup_epochs, frozen.schedule = "none", 0.0, "constant"
    frozen.drop_epoch *= config.epochs == 0
    return Setup(
        model=make_model(config, shapes, platform or jax.devices()[0].platform),
        frozen_optimizer=make(frozen, epochs=config.finetune.frozen_epochs)[0],
        full_optimizer=make(config.optimizer, epochs=config.epochs)[0],
        frozen_epochs=config.finetune.frozen_epochs,
        full_epochs=config.epochs,
        batch_size=config.batch_size,
        fixed=config.finetune.frozen_batchnorm == "inference",
        inputs=sensors.of(config),
        bands=sensors.band_inputs(sensors.of(config), shapes),
        target=labelled.target_of(config),
        present_share=config.finetune.present_share,
        objective=objective.of(config),
        class_weights=tuple(config.finetune.class_weights),
        oversample=config.finetune.oversample,
        crop_size=config.augment.crop_size,
        drop_sensor=config.finetune.drop_sensor,
        flip=config.augment.finetune.flip,
        transpose=config.augment.finetune.transpose,
        cache_bytes=config.data.resident_gib * 2**30,
    )


def _cuts(count, batch_size):
    """Where an epoch's batches end and others begin; the last has what is left.

    Unless that is a single chip, which BatchNorm would compare with itself: it joins the batch
    before.
    """
    return range(batch_size, count - (batch_size > 1), batch_size)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Of so many chips, those that come more than once included."""
    return 1 + len(_cuts(count, batch_size))


def _batches(seed, epoch, rows, batch_size):
    """Chip indices of an epoch's batches, of which `rows` are to come."""
    order = rows[batches.epoch_order(seed, epoch, len(rows))]
    return np.split(order, _cuts(len(rows), batch_size))


@functools.partial(jax.jit, static_argnames=("setup", "image_shape"))
def init(setup: Setup, seed: int | jax.Array, image_shape: tuple[int, ...]) -> Any:
    """The model's variables before any training; the encoder's weights are those of `pretrain`."""
    return setup.model.init(jax.random.key(seed), jnp.zeros((2, *image_shape)), train=True)


def fit(
    setup: Setup,
    variables: Any,
    chips: Labelled,
    seed: int,
    *,
    count: int | None = None,
    maps: list[batches.Rows] | None = None,
    start: TrainState | None = None,
    device: jax.Device | None = None,
) -> Iterator[Epoch]:
    """Trains, an epoch at a time. Only the loop runs on the host, and it waits for nothing.

    Args:
      setup: From `make_setup`.
      variables: Initial weights and statistics.
      chips: What to learn from.
      seed: Of the batches' order and their augmentation.
      count: Learn from the first so many chips alone; None is all. What is compiled for the chips
        serves every count.
      maps: `encode_views` of these variables and chips; None does without.
      start: A state of the full stage to go on from.
      device: Where to compute; None is the first.

    Yields:
      After each epoch, the state; the next epoch uses it up. If there is no full stage, a last one,
      number 0 of it, has the state that it would begin with.
    """
    device = device or jax.local_devices()[0]
    targets = np.asarray(chips.targets)[:count]
    rows = labelled.epoch_rows(targets, oversample=setup.oversample)
    weights = objective.class_weights(
        setup.class_weights, targets[rows], setup.target, setup.model.num_classes
    )
    # All on one device in the same way, or the steps would be compiled again. The steps use their
    # state up, so that it is a copy: the caller's variables outlive it. Chips that are there stay.
    put = functools.partial(jax.device_put, device=device, may_alias=False)
    chips = place(chips, device)
    if start is None:
        encoder = put(variables["params"]["encoder"])
        params = {name: p for name, p in variables["params"].items() if name != "encoder"}
        state = put(TrainState.create({**variables, "params": params}, setup.frozen_optimizer))
        for epoch in range(setup.frozen_epochs):
            for indices in _batches(seed, epoch, rows, setup.batch_size):
                state, loss = frozen_step(
                    setup, state, encoder, maps, chips, indices, seed, weights
                )
            yield Epoch("frozen", epoch + 1, state, loss)
        variables = {
            "params": {"encoder": encoder, **state.params},
            "batch_stats": state.batch_stats,
        }
        start = TrainState.create(variables, setup.full_optimizer)
        if not setup.full_epochs:
            yield Epoch("full", 0, start, loss)
    state = put(start)
    done = int(start.step) // steps_per_epoch(len(rows), setup.batch_size)
    for epoch in range(done, setup.full_epochs):
        order = setup.frozen_epochs + epoch
        for indices in _batches(seed, order, rows, setup.batch_size):
            state, loss = full_step(setup, state, chips, indices, seed, weights)
        yield Epoch("full", epoch + 1, state, loss)


def place(chips: Labelled, device: jax.Device) -> Labelled:
    """Labelled chips on a device, where steps can gather from them; those that are there stay."""

    def rows(arrays):
        return arrays if isinstance(arrays, batches.Rows) else batches.Rows.of(arrays)

    inputs = {name: rows(arrays) for name, arrays in chips.inputs.items()}
    return jax.device_put(Labelled(inputs, rows(chips.targets)), device)


def encode_views(
    setup: Setup, variables: Any, chips: Any, device: jax.Device | None = None
) -> list[batches.Rows] | None:
    """What the frozen encoder says of every view of chips' inputs: arrays [N * V, ...].

    A chip has eight views at most, an encoder that stands still sees each the same way in every
    epoch, and so do fine-tunings that start from the same encoder. None if the encoder is not one
    fixed function, if chips have other views (random squares, or sensors left out), or if that
    would take more than `setup.cache_bytes`.
    """
    if cached_maps(setup, variables, chips) is None:
        return None
    device = device or jax.local_devices()[0]
    variables, chips = jax.device_put((variables, chips), device)
    parts = []
    for i in range(0, batches.length(chips), setup.batch_size):
        some = {name: array[i : i + setup.batch_size] for name, array in chips.items()}
        parts.append([*map(batches.Rows.of, encode_batch(setup, variables, some))])
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)


def cached_maps(setup: Setup, variables: Any, chips: Any) -> list[batches.Rows] | None:
    """The shapes of what `encode_views` gives of chips, of which the shapes are enough too."""
    if not setup.fixed or setup.crop_size or setup.drop_sensor:
        return None
    maps = jax.eval_shape(functools.partial(encode_batch, setup), variables, chips)
    if sum(m.size * m.dtype.itemsize for m in maps) > setup.cache_bytes:
        return None
    return [jax.eval_shape(batches.Rows.of, m) for m in maps]


def finetune(
    config: Any,
    workdir: Path,
    train: Labelled,
    test: Labelled,
    writer: Any,
    validation: Labelled | None = None,
) -> dict[str, Any]:
    """Fine-tunes and evaluates; called again with the same folder, goes on where it stopped.

    Args:
      config: The run's configuration, checked.
      workdir: Where checkpoints, pictures and `results.json` go.
      train: Labelled chips to learn from.
      test: Chips to judge by.
      writer: Has `write_scalars(step, scalars)` and `flush()`.
      validation: Chips by which the epoch is chosen that counts; None is the last.

    Returns:
      The scores, as in `results.json`.

    Raises:
      InputError: Chips, initial encoder and configuration don't fit one another.
    """
    config = labelled.with_classes(config, train, test)
    labelled.check_chips(config, train, test, validation=validation)
    data = labelled.fingerprints(train, test, validation)
    run_folder.check_same_run(workdir, config, data)
    image_shape, count = labelled.image_shape_of(config, train), len(train.targets)
    rows = labelled.epoch_rows(train.targets, oversample=config.finetune.oversample)
    setup = make_setup(config, labelled.shapes_of(train), len(rows))
    names = class_names(config)
    test = labelled.as_judged(config, test)
    validation = validation and labelled.as_judged(config, validation)
    variables = init(setup, config.seed, image_shape)
    origin = None
    if config.init_from:
        variables, origin = starting.from_run(
            Path(config.init_from), variables, sensors.of(config), bands=config.init_bands
        )
    template = TrainState.create(variables, setup.full_optimizer)

    with ExitStack() as stack:
        checkpoints = stack.enter_context(
            checkpoint.open_checkpoints(workdir, config.checkpoint.keep)
        )
        mesh = sharding.make_mesh(jax.devices()[:1])
        state, before = checkpoint.restore_latest(checkpoints, template, mesh)
        best = None
        if validation:
            kept = checkpoint.open_checkpoints(workdir / checkpoint.BEST, 1)
            best = Best(stack.enter_context(kept), template, mesh, new=not before)
        start = state if before else None
        print(
            f"{count} labelled chips, {len(test.targets)} to judge by; "
            f"{config.finetune.frozen_epochs} epochs with a frozen encoder "
            f"({starting.words_of(origin) if origin else 'random weights'}), {config.epochs} of "
            "everything" + (f"; going on after step {int(state.step)}" if start else "")
        )
        steps = steps_per_epoch(len(rows), config.batch_size)
        if int(state.step) > config.epochs * steps:
            raise InputError(
                f"config.epochs is {config.epochs}, but {workdir} has learned for "
                f"{int(state.step) // steps} already; use another --workdir"
            )
        if start and (then := before["config"]["epochs"]) != config.epochs:
            print(rate_change(config, then, steps, int(state.step)))
        run_folder.claim(workdir, config, data)
        about = checkpoint.describe(
            config,
            steps=config.epochs * steps,
            data=data,
            shapes=labelled.shapes_of(test),
            origin=before.get("origin") if before else origin,
        )
        done = int(state.step) // steps + (config.finetune.frozen_epochs if start else 0)
        total, patience = config.finetune.frozen_epochs + config.epochs, config.finetune.patience

        def offer(best, chips, number, state):
            """Judges an epoch on the validation chips, and says whether it is the best so far."""
            matrix, _ = judge(setup, state.variables, chips)
            score = metrics.summary(matrix, names)[SCORE]
            writer.write_scalars(
                config.finetune.frozen_epochs + number, {f"validation_{SCORE}": score}
            )
            better = best.offer(number, score)
            about["best"] = best.epoch, best.score
            return better

        stopped = False
        if best and start:
            number = int(state.step) // steps
            if offer(best, validation, number, state) and number == before["best"][0]:
                best.keep(state, about)
            if best.epoch != before["best"][0]:
                raise InputError(
                    f"{workdir / checkpoint.BEST} lacks the run's best epoch, {before['best'][0]}; "
                    "use another --workdir"
                )
            # A run that is whole; another one that has less patience now stops after an epoch more.
            stopped = before["steps"] == int(state.step) and best.is_over(number, patience)
        with tqdm(total=total, initial=done, unit=" epochs", desc="fine-tuning") as bar:
            maps = None if start else encode_views(setup, variables, train.inputs)
            epochs = fit(setup, variables, train, config.seed, maps=maps, start=start)
            for epoch in () if stopped else epochs:
                loss = float(epoch.loss)
                if not np.isfinite(loss):
                    raise InputError(
                        f"the loss is {loss} in epoch {epoch.number} of the {epoch.stage} stage; "
                        "lower optimizer.learning_rate or finetune.frozen_learning_rate"
                    )
                if epoch.number:
                    bar.update()
                    bar.set_postfix(stage=epoch.stage, loss=f"{loss:.3f}")
                    writer.write_scalars(bar.n, {"loss": loss})
                state = epoch.state
                if epoch.stage == "frozen":
                    continue
                better = best is not None and offer(best, validation, epoch.number, state)
                stopped = best is not None and best.is_over(epoch.number, patience)
                if stopped:
                    about["steps"] = int(state.step)  # the run is whole
                last = stopped or epoch.number == config.epochs
                if last or better or epoch.number % config.checkpoint.every_epochs == 0:
                    checkpoint.save(checkpoints, state, about)
                if best and better:
                    best.keep(state, about)
                if stopped:
                    break
        variables, ended = state.variables, int(state.step) // steps
        if best:
            variables = best.variables(template, mesh)

    reliability = None if setup.target == "present" else Reliability()
    matrix, classes = judge(setup, variables, test, reliability=reliability)
    scores = metrics.summary(matrix, names)
    if reliability:
        scores["calibration"] = reliability.summary()
        pictures.draw_reliability(workdir / "reliability.png", scores["calibration"])
    if best:
        chosen = {"epoch": best.epoch, "of": ended, SCORE: best.score}
        scores["validation"] = {"split": config.data.validation_split, **chosen}
        print(
            f"epoch {best.epoch} of {ended} counts, which has the best macro F1 on "
            f"{config.data.validation_split}: {best.score:.3f}"
        )
    seen = [name for name in config.data.inputs if name != sensors.ELEVATION]
    if len(seen) > 1:
        scores["without"] = {
            name: metrics.summary(judge(setup, variables, test, name)[0], names) for name in seen
        }
    writer.write_scalars(total, {k: v for k, v in scores.items() if isinstance(v, float)})
    writer.flush()
    save_by_block(workdir / _JUDGED, matrix, test, classes)
    files.write_text(workdir / "results.json", json.dumps(scores, indent=2) + "\n")
    print(_table(scores, len(test.targets)))
    if reliability:
        print(
            f"calibration error {scores['calibration']['error']:.3f}: the mean gap between "
            f"confidence and accuracy ({workdir / 'reliability.png'})"
        )
    if setup.target == "mask":
        path = workdir / "predictions.png"
        few = sensors.join(sensors.of(config), test.take(slice(PICTURED)).inputs)
        shown = pictures.displayable(np.asarray(few), sensors.colors(config))
        pictures.draw_classes(
            path, shown, test.targets[:PICTURED], {"predicted": classes[:PICTURED]}, names
        )
        print(f"picture: {path}")
    return scores


def save_by_block(path: Path, matrix: np.ndarray, test: Labelled, classes: np.ndarray) -> None:
    """Writes the confusion matrices of the blocks of test ground, and their names, if known.

    Args:
      path: The file, `.npz`.
      matrix: Of them all, as `judge` has it.
      test: What was judged by.
      classes: What was said, as `judge` has it.
    """
    if test.groups is None:
        return
    matrices, blocks = metrics.confusion_matrices(
        test.targets, classes, len(matrix), test.groups, presence=np.ndim(matrix) == 3
    )
    with files.new_file(path) as partial:
        np.savez(partial, matrices=matrices, blocks=blocks)


def judged(run: Path) -> tuple[np.ndarray, int]:
    """The confusion matrices of a fine-tuning's test blocks [G, K, K], and how many blocks.

    True classes by those that were told. Where blocks are unknown there is one matrix, and 0.

    Raises:
      InputError: The run has no results, or they can't be read.
    """
    try:
        whole = np.array(json.loads((run / "results.json").read_text())["confusion_matrix"])
        if not (run / _JUDGED).exists():
            return whole[None], 0
        with np.load(run / _JUDGED) as file:
            matrices = file["matrices"]
        if not np.array_equal(matrices.sum(axis=0), whole):
            raise ValueError("it is of another test than results.json")
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{run} has no results that can be read ({error}); the command that made it judges "
            "again"
        ) from error
    return matrices, len(matrices)


def _table(scores, count):
    lines = [f"on {count} test chips, BatchNorm in inference mode"]
    shown = [name for name in METRICS if name in scores]
    lines += [f"  {name:<12}{scores[name]:.3f}" for name in shown]
    for sensor, less in scores.get("without", {}).items():
        lines.append(
            f"  without {sensor}: " + ", ".join(f"{name} {less[name]:.3f}" for name in shown)
        )
    names, rows = scores["classes"], zip(*(scores[k] for k in metrics.PER_CLASS), strict=True)
    wide = max(5, *map(len, names))
    lines.append(f"  {'class':<{wide}}   precision   recall       F1      IoU")
    for name, row in zip(names, rows, strict=True):
        cells = "".join(f"{'-' if v is None else format(v, '.3f'):>9}" for v in row)
        lines.append(f"  {name:<{wide}}   {cells}")
    return "\n".join(lines)
