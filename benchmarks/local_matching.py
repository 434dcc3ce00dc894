"""Step time of GLCNet+Elevation against SimCLR+Elevation, and local matching's share of it.

python benchmarks/local_matching.py [--batch 32] [--size 100] [--width 1] [--repeats 5]

Local matching is the drawing of the patches, their means, the head and the loss, forward and
backward; the local decoder, which any dense method has, is not part of it. The three are timed in
turn, so that the ratios hold on a noisy machine where times don't.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from elev_ssl_jax import augment, losses, matching
from elev_ssl_jax.config import default
from elev_ssl_jax.models.encoders import compute_dtype
from elev_ssl_jax.models.heads import PlainHead
from elev_ssl_jax.pretraining import elevation
from elev_ssl_jax.pretraining.step import make_train_step
from elev_ssl_jax.runtime import sharding
from elev_ssl_jax.runtime.optimizer import make_optimizer
from elev_ssl_jax.runtime.train_state import TrainState


def make_step(config, batch):
    """A function that trains one step more."""
    sample = {name: np.asarray(array[:2]) for name, array in batch.items()}
    method = elevation.make(config, sample, sharding.make_mesh())
    optimizer, schedule = make_optimizer(
        config.optimizer, epochs=1, steps_per_epoch=1000, batch_size=config.batch_size
    )
    views = method.views(augment.sample_keys(0, 0, 2), sample, True)
    variables = method.model.init(jax.random.key(0), *views.inputs, train=True)
    state = TrainState.create(variables, optimizer)
    mesh = sharding.make_mesh()
    train_step = make_train_step(config, method, optimizer, schedule, mesh)

    def step():
        nonlocal state
        state, terms = train_step(state, batch, 0)
        return terms["loss"]

    return step


def make_matching(config, batch):
    """A function that does what local matching adds to a step, given the decoder's output."""
    local, (count, height, width) = config.objective.local, batch["image"].shape[:3]
    channels = max(8, round(16 * config.model.width))
    dtype = compute_dtype(config, jax.default_backend())
    decoded = jnp.ones((count, 2, height, width, channels), dtype)
    head = PlainHead(tuple(local.projection), dtype)
    params = head.init(jax.random.key(0), jnp.ones((1, channels)))
    zero, full, no = jnp.zeros(count), jnp.full(count, float(height)), jnp.zeros(count, bool)
    crop = augment.Crop(zero, zero, full, full, no, no)

    @jax.jit
    def run(params, decoded, step):
        keys = augment.sample_keys(0, step, count)
        patches = matching.draw_patches(
            keys, (crop, crop), (height, width), count=local.patches, size=local.patch_size
        )

        def loss(params, decoded):
            z = head.apply(params, matching.patch_means(decoded, patches.rows, patches.columns))
            z1, z2 = (z[:, view].reshape(-1, z.shape[-1]) for view in (0, 1))
            return losses.nt_xent(z1, z2, valid=jnp.repeat(patches.valid, local.patches))

        return jax.value_and_grad(loss, (0, 1))(params, decoded)

    return lambda: run(params, decoded, 0)


def main() -> None:
    """Prints the times and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    cells = args.size // 3
    batch = {
        "image": rng.integers(0, 6000, (args.batch, args.size, args.size, 3)).astype(np.uint16),
        "elevation": rng.uniform(0, 2000, (args.batch, cells, cells)).astype(np.float32),
    }
    batch = jax.device_put(batch, sharding.split(sharding.make_mesh()))

    config = default()
    config.batch_size, config.model.width = args.batch, args.width
    simclr = make_step(config, batch)
    config = config.copy_and_resolve_references()
    config.objective.lam, config.objective.global_features = 0.5, "style"
    todo = {
        "SimCLR+Elevation": simclr,
        "GLCNet+Elevation": make_step(config, batch),
        "local matching": make_matching(config, batch),
    }
    times = {name: [] for name in todo}
    for repeat in range(args.repeats + 1):
        for name, run in todo.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if repeat:  # the first one compiles
                times[name].append(time.perf_counter() - start)

    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}, {vars(args)}")
    for name, values in times.items():
        print(f"  {name:<20}{1e3 * statistics.median(values):10.1f} ms")
    for name, other in (
        ("GLCNet+Elevation", "SimCLR+Elevation"),
        ("local matching", "GLCNet+Elevation"),
    ):
        ratios = [a / b for a, b in zip(times[name], times[other], strict=True)]
        low, high = min(ratios), max(ratios)
        print(f"{name} / {other}: {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
