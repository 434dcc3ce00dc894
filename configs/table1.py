r"""Table 1 of arXiv 2304.06857: classification with 80 labels, four initialisations.

python -m elev_ssl_jax.main --config=configs/table1.py --workdir=RUN
python -m elev_ssl_jax.main --config=configs/table1.py:demo --workdir=RUN   # no data needed
"""

from elev_ssl_jax.config import fine_tuning, with_variant


def get_config(variant: str = ""):
    config = fine_tuning("linear")
    config.task = "experiment"
    config.experiment.methods = ("random", "simclr", "elevation", "simclr_elev")
    return with_variant(config, variant)
