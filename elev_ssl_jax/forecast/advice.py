"""What would make a run fit that doesn't."""

import math
from typing import Any

from elev_ssl_jax.forecast.programs import Stage
from elev_ssl_jax.forecast.topologies import KNOWN


def advise(config: Any, topology: str, stage: Stage, needed: float, there: float) -> list[str]:
    """Changes of which each may do, by rule of three: they are not compiled.

    Args:
      config: The configuration of the run that doesn't fit.
      topology: Its devices, such as "v5e:2x2".
      stage: The one that doesn't fit.
      needed: GiB of a device that it takes.
      there: GiB that a device has.
    """
    # Weights, their gradient and Adam's two moments, and the chips, are there whatever the batch.
    fixed = (16 * stage.params + stage.resident) / 2**30
    similarities = stage.similarities / 2**30
    found = []
    if similarities > (needed - there) / 2:
        found.append("config.loss.chunk_size=4096, or smaller")
    if stage.resident / 2**30 > needed - there:
        found.append("config.data.resident_gib=0, which streams the chips from the disk")
    activations = max(needed - fixed - similarities, needed / 8)
    # Others run on single devices, or pre-train with a batch of their own.
    if there <= fixed or config.task != "pretrain":
        return found
    # Similarities stay as large: parts of a batch are compared with all of it.
    share = (there - fixed - similarities) / activations
    part = config.microbatch_size or config.batch_size
    sizes = [
        size
        for size in range(stage.devices, part, stage.devices)
        if config.batch_size % size == 0 and size <= share * part
    ]
    if sizes:
        found.append(f"config.microbatch_size={sizes[-1]}, for a second forward pass")
    kind = topology.partition(":")[0]
    for shape in KNOWN.get(kind, ()):
        devices = math.prod(map(int, shape.split("x")))
        enough = devices > stage.devices and devices * (there - fixed) >= stage.devices * (
            activations + similarities
        )
        if enough and config.batch_size % devices == 0:
            found.append(f"--topology={kind}:{shape}")
            break
    return found
