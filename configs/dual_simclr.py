r"""Dual-SimCLR: Sentinel-1 and Sentinel-2 images of one place belong together (SEN12MS).

python -m elev_ssl_jax.main --config=configs/dual_simclr.py --workdir=RUN
python -m elev_ssl_jax.main --config=configs/dual_simclr.py:demo --workdir=RUN   # no data needed

Elevation as a third task, where the chips have it: --config.objective.alpha=0.5. Own scenes:
--config.data.name=chips/segmentation --config.data.dir=DIR, with sensors named s1 and s2, or
--config.data.inputs="('radar', 'optics')" and --config.data.value_range=auto.
"""

from elev_ssl_jax.config import two_sensors, with_variant


def get_config(variant: str = ""):
    config = two_sensors()

    # What the network sees: decibels and reflectance, each band divided by its maximum over the
    # square ("range" leaves it as bright as it is).
    config.data.scaling = "crop_max"

    # An encoder for each sensor, each with a head of two layers, that NT-Xent compares.
    config.model.encoder = "resnet18"
    config.model.projection = (512, 128)
    config.objective.temperature = 0.07
    return with_variant(config, variant)
