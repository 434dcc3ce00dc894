"""Fine-tunings that differ in their seed: together, as `experiment` runs them, and one by one.

python benchmarks/finetune_column.py [--head linear] [--seeds 10] [--labels 80] [--size 64]
    [--width 0.25]

Together, they share the compiled steps and what the frozen encoder says of the chips, and are
spread over the devices. One by one, each compiles and encodes for itself, as separate runs would
(whose start-up, some ten seconds, is not counted). The stages are those of the paper, 20 and 80
epochs.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from elev_ssl_jax.config import fine_tuning
from elev_ssl_jax.finetuning import labelled, loop
from elev_ssl_jax.runtime import sharding


def main() -> None:
    """Prints both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--head", default="linear", choices=("linear", "unet"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--labels", type=int, default=80)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=float, default=0.25)
    args = parser.parse_args()
    config = fine_tuning(args.head)
    config.model.width = args.width
    rng = np.random.default_rng(0)
    shape = (args.labels, args.size, args.size)
    chips = labelled.Labelled(
        {"image": rng.integers(0, 6000, (*shape, 3)).astype(np.uint16)},
        rng.integers(0, 2, shape if args.head == "unet" else shape[:1]).astype(np.uint8),
    )
    config.finetune.num_classes = 2
    image_shape = (args.size, args.size, 3)
    shapes = {"image": image_shape}
    encoder = loop.init(loop.make_setup(config, shapes, args.labels), 0, image_shape)

    def run(setup, seed, maps=None, mesh=None):
        variables = loop.init(setup, seed, image_shape)
        variables = {p: v | {"encoder": encoder[p]["encoder"]} for p, v in variables.items()}
        if maps is None:
            maps = loop.encode_views(setup, variables, chips.inputs, mesh)
        *_, last = loop.fit(setup, variables, chips, seed, maps=maps, mesh=mesh)
        return jax.device_get(last.state.params)

    start = time.perf_counter()
    alone = []
    for seed in range(args.seeds):
        jax.clear_caches()
        setup = loop.make_setup(config, shapes, args.labels)
        alone.append(run(setup, seed))
    one_by_one = time.perf_counter() - start

    jax.clear_caches()
    devices = jax.local_devices()
    meshes = [sharding.make_mesh([device]) for device in devices]
    start = time.perf_counter()
    setup = loop.make_setup(config, shapes, args.labels)
    maps = [loop.encode_views(setup, encoder, chips.inputs, mesh) for mesh in meshes]
    with ThreadPoolExecutor(len(devices)) as pool:

        def work(seed):
            i = seed % len(devices)
            return run(setup, seed, maps[i], meshes[i])

        together = list(pool.map(work, range(args.seeds)))
    shared = time.perf_counter() - start
    jax.tree.map(np.testing.assert_array_equal, alone, together)

    print(f"{len(devices)} {devices[0].device_kind}, jax {jax.__version__}, {vars(args)}")
    print(f"  one by one {one_by_one:8.1f} s\n  together   {shared:8.1f} s")
    print(f"ratio: {one_by_one / shared:.2f}")


if __name__ == "__main__":
    main()
