r"""Figure 4 of arXiv 2304.06857: classification, by the number of labels.

python -m elev_ssl_jax.main --config=configs/figure4.py --workdir=RUN
python -m elev_ssl_jax.main --config=configs/figure4.py:demo --workdir=RUN   # no data needed
"""

from elev_ssl_jax.config import fine_tuning, with_variant


def get_config(variant: str = ""):
    config = fine_tuning("linear")
    config.task = "experiment"
    config.experiment.methods = ("random", "simclr", "elevation", "simclr_elev")
    config.experiment.labels = (80, 100, 200, 500, 1000, 2000, 3000)
    config.experiment.pretrain.split = "unlabeled"
    if variant == "demo":
        config.experiment.labels = (20, 50, 150)
    return with_variant(config, variant)
