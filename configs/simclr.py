r"""SimCLR: NT-Xent on two views, no elevation (arXiv 2002.05709, and 2304.06857, section 2.1.1).

python -m elev_ssl_jax.main --config=configs/simclr.py --workdir=RUN
python -m elev_ssl_jax.main --config=configs/simclr.py:demo --workdir=RUN   # no data needed
"""

from elev_ssl_jax.config import default, with_variant


def get_config(variant: str = ""):
    config = default()
    config.objective.alpha = 0.0
    config = with_variant(config, variant)
    if variant == "demo":
        config.epochs = 50  # without elevation it learns more slowly
    return config
