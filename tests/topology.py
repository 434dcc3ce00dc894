"""A short pre-training whose curve, views and parameters can be compared between topologies.

python -m tests.topology WORKDIR CHIPS.npz [COORDINATOR NUM_PROCESSES PROCESS_ID [DIE_AT_STEP]]
"""

import functools
import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from elev_ssl_jax import augment
from elev_ssl_jax.config import default
from elev_ssl_jax.data import procedural
from elev_ssl_jax.errors import reported
from elev_ssl_jax.pretraining import elevation as objective
from elev_ssl_jax.pretraining import loop
from elev_ssl_jax.runtime import batches, sharding

STEPS_PER_EPOCH, EPOCHS = 6, 5


def write_chips(path: Path, *, seed: int = 0) -> None:
    """Scenes of nine chips of 33 pixels with 11 cells."""

    def cut(array):
        side = array.shape[-1] // 3
        return np.moveaxis(array.reshape(-1, 3, side, 3, side), (1, 3), (0, 1)).reshape(
            9, -1, side, side
        )

    scenes = [procedural.make_scene(seed + i, 99) for i in range(12)]
    images = np.concatenate([cut(image) for image, _, _ in scenes])
    elevation = np.concatenate([cut(dem[None])[:, 0] for _, dem, _ in scenes])
    np.savez(path, image=np.moveaxis(images, 1, -1), elevation=elevation)


class _Writer:
    """Keeps the losses in a file, and may die like a machine that loses its power."""

    def __init__(self, path, die_at):
        self.path, self.die_at = path, die_at

    def write_scalars(self, step, scalars):
        if step == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if "loss" in scalars and sharding.is_first():
            with self.path.open("a") as file:
                file.write(json.dumps([step, scalars["loss"]]) + "\n")

    def flush(self):
        pass


def losses(workdir: Path) -> dict[int, float]:
    """By step, of the last run that came to it."""
    return dict(json.loads(line) for line in (workdir / "losses.jsonl").read_text().splitlines())


def run(workdir: Path, chips_path: Path, die_at: int | None = None) -> None:
    """Pre-trains on all devices that `sharding.make_mesh` gives."""
    workdir.mkdir(parents=True, exist_ok=True)
    chips = dict(np.load(chips_path))
    train, heldout = (
        {k: v[part] for k, v in chips.items()} for part in (slice(100), slice(-8, None))
    )
    config = default()
    config.batch_size, config.epochs = 16, EPOCHS
    config.model.width, config.model.projection = 0.125, (16, 8)
    # Training amplifies rounding errors tenfold every few steps at the usual rate, and then no two
    # topologies, nor two machines, have the same curve; at this rate thirty steps are quiet.
    config.optimizer.learning_rate = 1e-5
    # AdamW's first step is the sign of the gradient, which rounding decides where it is nearly 0.
    config.optimizer.warmup_epochs = 1
    config.log.every_steps = config.checkpoint.every_epochs = 1
    _write_views(workdir, config, train)
    loop.pretrain(
        config, workdir, loop.Data(train, heldout), _Writer(workdir / "losses.jsonl", die_at)
    )


def _write_views(workdir, config, train):
    """Two steps' chips and what augmentation makes of them."""
    mesh = sharding.make_mesh()

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def views(step, batch):
        keys = augment.sample_keys(config.seed, step, config.batch_size)
        made = objective.make_views(config, keys, batch)
        drawn = jax.random.key_data(keys), jnp.nan_to_num(made.targets.elevation)
        return {**batch, "keys": drawn[0], "target": drawn[1], "views": made.inputs.images}

    for step in (0, STEPS_PER_EPOCH + 1):
        stream, _ = batches.make_batches(
            train,
            ("image", "elevation"),
            mesh,
            seed=config.seed,
            batch_size=config.batch_size,
            resident_gib=1,
            first_step=step,
        )
        arrays = jax.device_get(views(step, next(stream)))
        if sharding.is_first():
            np.savez(workdir / f"views{step}.npz", **arrays)


if __name__ == "__main__":
    workdir, chips, *processes = sys.argv[1:]
    with sharding.leaving(), reported():
        if processes:
            coordinator, count, number, *die_at = processes
            sharding.start_processes(coordinator, int(count), int(number), timeout=60)
        run(Path(workdir), Path(chips), int(die_at[0]) if processes and die_at else None)
