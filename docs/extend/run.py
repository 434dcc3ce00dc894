"""What the examples are used with: a configuration, made-up chips, and a writer."""

from pathlib import Path

import numpy as np

from elev_ssl_jax.config import default
from elev_ssl_jax.data.procedural import make_scene
from elev_ssl_jax.pretraining import loop


class Printed:
    """Anything with these two methods is a writer."""

    def write_scalars(self, step, scalars):
        """Called with what was measured up to a step."""
        print(step, {name: round(float(value), 3) for name, value in scalars.items()})

    def flush(self):
        """Called when a part of the run is done."""


def chips(seeds, side=48):
    """Image uint16 [N, H, W, 3] and elevation float32 [N, h, w] of a scene for each seed."""
    images, elevations, _ = zip(*(make_scene(seed, side) for seed in seeds), strict=True)
    return {"image": np.moveaxis(np.stack(images), 1, -1), "elevation": np.stack(elevations)}


config = default()
config.batch_size, config.epochs, config.model.width = 16, 3, 0.25
data = loop.Data(chips(range(64)), chips(range(64, 80)))

if __name__ == "__main__":
    loop.pretrain(config, Path("runs/extend"), data, Printed())
