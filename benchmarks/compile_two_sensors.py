"""What a step of two sensors takes of a TPU's memory, by the compiler, without a TPU.

TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 JAX_PLATFORMS=cpu \\
    python benchmarks/compile_two_sensors.py --encoder resnet18 --batch 1024 --topology v5e:4x4

Needs libtpu (`pip install -e ".[tpu]"`). The compiler's numbers, not a measurement.
"""

import argparse
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from elev_ssl_jax import augment, sensor_scale
from elev_ssl_jax.config import two_sensors
from elev_ssl_jax.pretraining import fusion
from elev_ssl_jax.pretraining.step import make_train_step
from elev_ssl_jax.runtime import sharding
from elev_ssl_jax.runtime.optimizer import make_optimizer
from elev_ssl_jax.runtime.train_state import TrainState


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--chip", type=int, default=256, help="pixels that squares are cut from")
    parser.add_argument("--topology", default="v5e:4x4")
    args = parser.parse_args()
    config = two_sensors()
    config.batch_size, config.augment.crop_size = args.batch, args.size
    config.model.encoder, config.model.dtype = args.encoder, "bfloat16"
    side = args.chip
    chips = {
        "s1": np.zeros((2, side, side, 2), np.float32),
        "s2": np.zeros((2, side, side, 13), np.uint16),
    }
    config.data.update(sensor_scale.measure(config, chips))
    devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    mesh = Mesh(np.array(devices).reshape(-1), ("batch",), axis_types=(AxisType.Auto,))
    method = fusion.make(config, chips, mesh)
    optimizer, schedule = make_optimizer(
        config.optimizer, epochs=100, steps_per_epoch=160, batch_size=args.batch
    )

    def init():
        few = {name: jnp.asarray(chips[name]) for name in method.reads}
        views = method.views(augment.sample_keys(0, 0, 2), few, True)
        variables = method.model.init(jax.random.key(0), *views.inputs, train=True)
        return TrainState.create(variables, optimizer)

    def on(tree, where, count=None):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape if count is None else (count, *leaf.shape[1:]),
                leaf.dtype,
                sharding=where,
            ),
            tree,
        )

    state = on(jax.eval_shape(init), sharding.replicated(mesh))
    batch = on(chips, sharding.split(mesh), args.batch)
    step = make_train_step(config, method, optimizer, schedule, mesh)
    compiled = step.lower(state, batch, 0).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    whole = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    kinds = ("all-gather", "all-reduce", "while", "scatter", "gather")
    counts = {k: len(re.findall(rf" {k}(?:-start)?\(", text)) for k in kinds}
    print(
        f"{args.encoder}, batch {args.batch}, {args.size} of {side} pixels, {args.topology} "
        f"({mesh.size} devices): {whole / 2**30:.2f} GiB a device by the compiler, "
        f"{memory.temp_size_in_bytes / 2**30:.2f} of it working memory; operations {counts}"
    )


if __name__ == "__main__":
    main()
