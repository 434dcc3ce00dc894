r"""Elevation-Map: the encoder learns from elevation alone (arXiv 2304.06857, section 3.1).

python -m elev_ssl_jax.main --config=configs/elevation.py --workdir=RUN
python -m elev_ssl_jax.main --config=configs/elevation.py:demo --workdir=RUN   # no data needed
"""

from elev_ssl_jax.config import default, with_variant


def get_config(variant: str = ""):
    config = default()
    config.objective.alpha = 1.0
    return with_variant(config, variant)
