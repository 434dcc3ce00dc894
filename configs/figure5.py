r"""Figure 5 of arXiv 2304.06857: segmentation, by the number of labels.

python -m elev_ssl_jax.main --config=configs/figure5.py --workdir=RUN
python -m elev_ssl_jax.main --config=configs/figure5.py:demo --workdir=RUN   # no data needed
"""

from elev_ssl_jax.config import fine_tuning, with_variant


def get_config(variant: str = ""):
    config = fine_tuning("unet")
    config.task = "experiment"
    config.experiment.methods = ("random", "glcnet", "elevation", "glcnet_elev")
    config.experiment.labels = (80, 100, 200, 500, 1000, 2000, 3000)
    config.experiment.pretrain.split = "unlabeled"
    config.experiment.pretrain.batch_size = 200
    if variant == "demo":
        config.experiment.labels = (20, 50, 150)
    return with_variant(config, variant)
