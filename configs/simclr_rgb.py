r"""SimCLR on red, green and blue of Sentinel-2: the baseline of the two-sensor tables (SEN12MS).

python -m elev_ssl_jax.main --config=configs/simclr_rgb.py --workdir=RUN
python -m elev_ssl_jax.main --config=configs/simclr_rgb.py:demo --workdir=RUN   # no data needed
"""

from elev_ssl_jax.config import two_sensors, with_variant


def get_config(variant: str = ""):
    config = two_sensors()
    config.data.inputs = ("s2",)
    config.data.bands, config.data.rgb = (3, 2, 1), (3, 2, 1)
    config.data.value_range = (0.0, 3000.0)
    config.model.fusion = "early"
    config.objective.positives = "views"
    config.augment.contrastive.update(
        crop_scale=(0.08, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, jitter_probability=0.8
    )
    config = with_variant(config, variant)
    config.data.scaling = "range"  # colours are what it learns
    return config
