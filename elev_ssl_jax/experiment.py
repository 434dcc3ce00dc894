"""Many runs: every method pre-trained once, then fine-tuned for each label count and seed.

A cell is one fine-tuning. Its result is a file of its own, and a cell with a file is not run
again, so that an experiment can be stopped anywhere, and widened later.
"""

import collections
import functools
import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from elev_ssl_jax import augment, checkpoint, finetune, metrics, pictures
from elev_ssl_jax.config import METHODS, default


class Cell(NamedTuple):
    """One fine-tuning."""

    method: str
    labels: int
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.method}-{self.labels}-{self.seed}"


def pretrain_config(config: Any, method: str) -> Any:
    """The configuration of a method's pre-training: the experiment's data, model and views."""
    settings = config.experiment.pretrain
    result = default()
    for name in ("data", "augment", "model", "objective", "loss", "checkpoint", "log"):
        result[name].update(config[name])
    result.data.synthetic.chips = 0  # the experiment has made them
    result.data.split = settings.split
    result.seed = config.seed
    result.batch_size, result.epochs = settings.batch_size, settings.epochs
    result.optimizer.update(settings.optimizer)
    result.objective.update(METHODS[method])
    return result


def experiment(
    config: Any,
    workdir: Path,
    train: finetune.Chips,
    test: finetune.Chips,
    pretrain: Callable[[Any, Path], None],
) -> list[str]:
    """Runs what is missing. The results, `cells/*` and `panel.npz`, are for `report`.

    Args:
      config: The experiment's configuration, checked.
      workdir: Where everything goes.
      train: Labelled chips; n labels are the first n.
      test: Chips to judge by.
      pretrain: Pre-trains by a configuration into a folder, or goes on there.

    Returns:
      A line for each pre-training and cell that failed.

    Raises:
      InputError: Chips and configuration don't fit each other.
    """
    settings = config.experiment
    for labels in settings.labels:
        finetune.check_chips(config, train, test, labels)
    (workdir / "cells").mkdir(parents=True, exist_ok=True)
    _write_panel(config, workdir, test)

    seeds = range(config.seed, config.seed + settings.seeds)
    cells = [Cell(*c) for c in itertools.product(settings.methods, settings.labels, seeds)]
    todo = [cell for cell in cells if not _result_path(workdir, cell).exists()]
    print(f"{len(cells)} fine-tunings, {len(cells) - len(todo)} of them done already")

    failed: list[str] = []
    runs: dict[str, Path | None] = {}
    for method in dict.fromkeys(cell.method for cell in todo):
        try:
            runs[method] = _pretrained(config, workdir, method, pretrain)
        except Exception as error:  # the other methods go on
            failed.append(f"pre-training {method}: {_reason(error)}")
    queue = collections.deque(cell for cell in todo if cell.method in runs)

    def work(device: jax.Device) -> None:
        run = _make_run(config, runs, train, test, device)
        while True:
            try:
                cell = queue.popleft()
            except IndexError:
                return
            try:
                _save(workdir, cell, *run(cell), with_classes=cell.seed == config.seed)
            except Exception as error:  # the other cells go on
                failed.append(f"{cell.name}: {_reason(error)}")
            bar.update()

    # A cell is too small for two devices, but there are many cells.
    devices = jax.local_devices()
    with (
        tqdm(total=len(queue), unit=" cells", desc="fine-tuning") as bar,
        ThreadPoolExecutor(len(devices)) as pool,
    ):
        try:
            for worker in [pool.submit(work, device) for device in devices]:
                worker.result()
        finally:
            queue.clear()  # interrupted: the cells under way are the last
    return failed


def _pretrained(config, workdir, method, pretrain) -> Path | None:
    """The folder of a method's pre-training, run now if it is not complete."""
    if method == "random":
        return None
    folder = workdir / "pretrain" / method
    if not (folder / "results.json").exists():
        print(f"\npre-training: {method}")
        pretrain(pretrain_config(config, method), folder)
    return folder


def _make_run(config, runs, train, test, device) -> Callable[[Cell], Any]:
    """A function that runs a cell: its confusion matrix, and the predicted classes.

    All cells share the compiled steps, and those that start from one encoder its maps of the chips.
    """
    image_shape = train.images.shape[1:]
    setup_of = functools.cache(functools.partial(finetune.make_setup, config, image_shape))
    # Only a learning rate that decays depends on how many steps there are.
    decays = config.optimizer.schedule == "cosine"

    @functools.lru_cache(maxsize=1)
    def encoder_of(run, seed):
        setup = setup_of(config.experiment.labels[0])
        variables = finetune.init(setup, seed, image_shape)
        if run is not None:
            variables = checkpoint.load_encoder(run, variables)
        encoder = {part: leaves["encoder"] for part, leaves in variables.items()}
        return encoder, finetune.encode_views(setup, variables, train.images, device)

    def run_cell(cell):
        run = runs[cell.method]
        setup = setup_of(cell.labels if decays else config.experiment.labels[0])
        variables = finetune.init(setup, cell.seed, image_shape)
        # A pre-trained encoder is the same for every seed, a random one is not.
        encoder, maps = encoder_of(run, cell.seed if run is None else config.seed)
        variables = {p: {**leaves, "encoder": encoder[p]} for p, leaves in variables.items()}
        epochs = finetune.fit(
            setup, variables, train, cell.seed, count=cell.labels, maps=maps, device=device
        )
        epoch = collections.deque(epochs, maxlen=1).pop()  # the last
        if not np.isfinite(float(epoch.loss)):
            raise FloatingPointError(f"the loss is {float(epoch.loss)}")
        return finetune.evaluate(setup, epoch.state.variables, test)

    return run_cell


def _result_path(workdir, cell) -> Path:
    return workdir / "cells" / f"{cell.name}.json"


def _save(workdir, cell, matrix, classes, *, with_classes) -> None:
    """Writes a cell's result; the JSON file comes last, and whole."""
    path = _result_path(workdir, cell)
    if with_classes:
        chosen = np.load(workdir / "panel.npz")["chosen"]
        np.save(path.with_suffix(".npy"), classes[chosen])
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(cell._asdict() | metrics.summary(matrix)) + "\n")
    partial.replace(path)


def _write_panel(config, workdir, test) -> None:
    """Some test chips to picture: those whose classes are mixed most, or just the first."""
    path = workdir / "panel.npz"
    if path.exists():
        return
    flat = np.asarray(test.targets).reshape(len(test.targets), -1)
    mixture = np.ma.masked_equal(flat, finetune.UNLABELLED).std(axis=1).filled(0)
    chosen = np.argsort(-mixture, kind="stable")[: finetune.PICTURED]
    images = augment.normalize(jnp.asarray(test.images[chosen]), config.data.value_range)
    np.savez(
        path,
        chosen=chosen,
        images=pictures.displayable(np.asarray(images), tuple(config.data.rgb)),
        targets=test.targets[chosen],
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
