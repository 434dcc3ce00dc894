"""One fine-tuning by itself: its folder, the epoch that counts, and what is said of it.

The last epoch is what counts, or the best on chips to validate on, if there are any: on the test
chips nothing is selected.
"""

import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from elev_ssl_jax import files, metrics, pictures, sensors, storage
from elev_ssl_jax.config import class_names
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import labelled, loop
from elev_ssl_jax.finetuning.calibration import Reliability
from elev_ssl_jax.finetuning.labelled import Labelled
from elev_ssl_jax.finetuning.selection import Best
from elev_ssl_jax.finetuning.step import Setup, judge, tell
from elev_ssl_jax.pretraining.measures import level_and_relief
from elev_ssl_jax.recipes import METRICS
from elev_ssl_jax.runtime import checkpoint, run_folder, sharding, starting
from elev_ssl_jax.runtime.optimizer import rate_change
from elev_ssl_jax.runtime.train_state import TrainState

PICTURED = 6  # chips in a picture
_JUDGED = "judged.npz"  # of a run: confusion matrices by block of test ground
_QUANTITY = {  # scores of a regression, all but one in its unit
    "rmse": "RMSE",
    "mae": "MAE",
    "bias": "bias",
    "r2": "R2",
    "relief_rmse": "relief RMSE",
}


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
    mesh = sharding.make_mesh(loop.shared_by(config, jax.local_devices()))
    data = labelled.fingerprints(train, test, validation)
    run_folder.check_same_run(workdir, config, data)
    rows = labelled.epoch_rows(train.targets, oversample=config.finetune.oversample)
    setup = loop.make_setup(config, labelled.shapes_of(config, train), len(rows))
    test = labelled.as_judged(config, test)
    validation = validation and labelled.as_judged(config, validation, "data.validation_split")
    steps = loop.steps_per_epoch(len(rows), config.batch_size)
    parts = _Parts(config, workdir, setup, mesh, steps, train, test, validation, data)
    return _report(parts, _learn(parts, writer), writer)


class _Parts(NamedTuple):
    """What a run is made of."""

    config: Any
    workdir: Path
    setup: Setup
    mesh: Mesh
    steps: int  # an epoch
    train: Labelled
    test: Labelled  # as it is judged
    validation: Labelled | None  # likewise
    data: dict[str, str]  # fingerprints


class _Learned(NamedTuple):
    """What came of it."""

    variables: Any  # of the epoch that counts
    epochs: int  # of the full stage
    best: Best | None


def _learn(parts, writer) -> _Learned:
    """Trains, from the folder's last checkpoint on, and saves."""
    config, workdir, setup, mesh, steps, train, test, validation, data = parts
    variables = loop.init(setup, config.seed, labelled.image_shape_of(config, train))
    origin = None
    if config.init_from:
        variables, origin = starting.from_run(
            storage.run_path(config.init_from),
            variables,
            sensors.of(config),
            bands=config.init_bands,
        )
    frozen, patience = config.finetune.frozen_epochs, config.finetune.patience
    with ExitStack() as stack:

        def open_checkpoints(folder, keep):
            return stack.enter_context(checkpoint.open_checkpoints(folder, keep))

        checkpoints = open_checkpoints(workdir, config.checkpoint.keep)
        template = TrainState.create(variables, setup.full_optimizer)
        state, before = checkpoint.restore_latest(checkpoints, template, mesh)
        start, done = state if before else None, int(state.step) // steps
        begins = starting.words_of(origin) if origin else "random weights"
        print(
            f"{len(train.targets)} labelled chips, {len(test.targets)} to judge by; {frozen} "
            f"epochs with a frozen encoder ({begins}), {config.epochs} of everything"
            + (f"; going on after step {int(state.step)}" if start else "")
        )
        if done > config.epochs:
            raise InputError(
                f"config.epochs is {config.epochs}, but {workdir} has learned for {done} already; "
                "use another --workdir"
            )
        if start and (then := before["config"]["epochs"]) != config.epochs:
            print(rate_change(config, then, steps, int(state.step)))
        best = None
        if validation:
            best = Best(open_checkpoints(workdir / checkpoint.BEST, 1), mesh, state, done, before)
        run_folder.claim(workdir, config, data)
        about = checkpoint.describe(
            config,
            steps=config.epochs * steps,
            data=data,
            shapes=labelled.shapes_of(config, test),
            origin=before.get("origin") if before else origin,
        )
        # A run that is whole. Where one has less patience than it had, an epoch more ends it.
        whole = bool(before) and before["steps"] == int(state.step)
        stopped = best is not None and whole and best.is_over(done, patience)
        first = done + frozen if start else 0
        total = frozen + config.epochs
        with tqdm(total=total, initial=first, unit=" epochs", desc="fine-tuning") as bar:
            maps = None if start else loop.encode_views(setup, variables, train.inputs, mesh)
            epochs = loop.fit(
                setup, variables, train, config.seed, maps=maps, start=start, mesh=mesh
            )
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
                better = False
                if best and validation:
                    score = _score(setup, state.variables, validation)
                    writer.write_scalars(bar.n, {f"validation_{_compared(setup)}": score})
                    better = best.offer(epoch.number, score)
                    stopped = best.is_over(epoch.number, patience)
                    about["best"] = best.epoch, best.score
                if stopped:
                    about["steps"] = int(state.step)  # the run is whole
                last = stopped or epoch.number == config.epochs
                if last or better or epoch.number % config.checkpoint.every_epochs == 0:
                    checkpoint.save(checkpoints, state, about)
                    writer.flush()
                if best and better:
                    checkpoints.wait_until_finished()
                    best.keep(state, about)
                if stopped:
                    break
        variables = best.variables(template) if best else state.variables
        return _Learned(variables, int(state.step) // steps, best)


def _compared(setup) -> str:
    """The score by which epochs are compared, the more the better."""
    return "r2" if setup.scale else "macro_f1"  # in which rare classes count as much as common ones


def _score(setup, variables, chips) -> float:
    if setup.scale:
        found = metrics.regression_scores(chips.targets, tell(setup, variables, chips))
    else:
        found = metrics.summary(judge(setup, variables, chips)[0])
    return found[_compared(setup)]


def _report(parts, learned, writer) -> dict[str, Any]:
    """Judges by the test chips, and writes, draws and prints what that says."""
    config, workdir, best = parts.config, parts.workdir, learned.best
    judged = _judge_quantity if parts.setup.scale else _judge_classes
    scores, lines = judged(parts, learned.variables)
    if best:
        name = _compared(parts.setup)
        chosen = {"epoch": best.epoch, "of": learned.epochs, name: best.score}
        scores["validation"] = {"split": config.data.validation_split, **chosen}
        lines.append(
            f"epoch {best.epoch} of {learned.epochs} counts, which has the best "
            f"{'R2' if name == 'r2' else 'macro F1'} on {config.data.validation_split}: "
            f"{best.score:.3f}"
        )
    files.write_text(workdir / "results.json", json.dumps(scores, indent=2) + "\n")
    total = config.finetune.frozen_epochs + config.epochs
    writer.write_scalars(total, {k: v for k, v in scores.items() if isinstance(v, float)})
    writer.flush()
    print("\n".join(lines))
    return scores


def _judge_classes(parts, variables) -> tuple[dict[str, Any], list[str]]:
    """Scores of classes, and lines that say them."""
    config, workdir, setup, test = parts.config, parts.workdir, parts.setup, parts.test
    names = class_names(config)
    reliability = None if setup.target == "present" else Reliability()
    matrix, classes = judge(setup, variables, test, reliability=reliability)
    scores = metrics.summary(matrix, names)
    seen = [name for name in config.data.inputs if name != sensors.ELEVATION]
    if len(seen) > 1:
        scores["without"] = {
            name: metrics.summary(judge(setup, variables, test, name)[0], names) for name in seen
        }
    lines = [_table(scores, len(test.targets))]
    if reliability:
        path = workdir / "reliability.png"
        scores["calibration"] = reliability.summary()
        pictures.draw_reliability(path, scores["calibration"])
        lines.append(
            f"calibration error {scores['calibration']['error']:.3f}: the mean gap between "
            f"confidence and accuracy ({path})"
        )
    if setup.target == "mask":
        path = workdir / "predictions.png"
        few = test.targets[:PICTURED]
        pictures.draw_classes(path, _shown(parts), few, {"predicted": classes[:PICTURED]}, names)
        lines.append(f"picture: {path}")
    save_by_block(workdir / _JUDGED, matrix, test, classes)
    return scores, lines


def _judge_quantity(parts, variables) -> tuple[dict[str, Any], list[str]]:
    """Scores of a regression, in its unit, beside those of saying one number, and lines of them."""
    config, setup, test = parts.config, parts.setup, parts.test
    quantity, unit = labelled.told_by(config)
    mean = np.nanmean(parts.train.targets, dtype=np.float64)
    told, true = tell(setup, variables, test), test.targets
    known = ~np.isnan(true)
    reliefs = [level_and_relief(field, known)[1] for field in (true, told)]
    scores: dict[str, Any] = {"quantity": quantity, "unit": unit}
    scores |= metrics.regression_scores(true, told)
    rivals = metrics.regression_scores(true, np.full(true.shape, mean))
    of_relief = [metrics.regression_scores(reliefs[0], f)["rmse"] for f in (reliefs[1], 0 * told)]
    scores["relief_rmse"], rivals["relief_rmse"] = of_relief
    scores["of_mean"] = rivals
    seen = [name for name in config.data.inputs if name != sensors.ELEVATION]
    if len(seen) > 1:
        scores["without"] = {
            name: metrics.regression_scores(true, tell(setup, variables, test, name))
            for name in seen
        }
    path = parts.workdir / "predictions.png"
    few = slice(PICTURED)
    fields = [field[few] for field in (true, told, *reliefs)]
    pictures.draw_field(path, _shown(parts), *fields, quantity=quantity, unit=unit)
    # As many places as its numbers are large.
    form = f".{max(1, 2 - math.floor(math.log10(config.finetune.scale[1])))}f"
    lines = [
        f"{quantity} of {known.sum():,} cells of {len(true)} test chips, BatchNorm in "
        "inference mode",
        f"  {'':<20}{'told':>10}{'one mean':>10}",
    ]
    for name, title in _QUANTITY.items():
        pair = "".join(
            f"{format(s[name], '.3f' if name == 'r2' else form):>10}" for s in (scores, rivals)
        )
        title = pictures.with_unit(title, unit if name != "r2" else "")
        lines.append(f"  {title:<20}{pair}")
    for name, less in scores.get("without", {}).items():
        rmse = f"{less['rmse']:{form}} {unit}".rstrip()
        lines.append(f"  without {name}: RMSE {rmse}, R2 {less['r2']:.3f}")
    return scores, [*lines, f"picture: {path}"]


def _shown(parts) -> np.ndarray:
    """The first test chips, to look at."""
    few = sensors.join(sensors.of(parts.config), parts.test.take(slice(PICTURED)).inputs)
    return pictures.displayable(np.asarray(few), sensors.colors(parts.config))


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
    again = "the command that made the run judges again"
    said = files.read_json(run / "results.json", again)
    with files.told(run / "results.json", again):
        whole = np.array(said["confusion_matrix"], float)
    if not (run / _JUDGED).exists():
        return whole[None], 0
    (matrices,) = files.read_arrays(run / _JUDGED, again, "matrices")
    if matrices.ndim != whole.ndim + 1 or not np.array_equal(matrices.sum(axis=0), whole):
        raise InputError(f"{run / _JUDGED} is of another test than results.json; {again}")
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
