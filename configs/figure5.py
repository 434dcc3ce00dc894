r"""Figure 5 of arXiv 2304.06857: segmentation, by the number of labels.

python -m elev_ssl_jax.main --config=configs/figure5.py --workdir=RUN
python -m elev_ssl_jax.main --config=configs/figure5.py:demo --workdir=RUN   # no data needed

Each method is pre-trained three times, and each pre-training fine-tuned with ten seeds for every
number of labels. Three repetitions show large differences only:
--config.experiment.pretrain_seeds=5 or 10 adds to what is there.
--config.experiment.label_draws=1 draws the labelled chips anew in each repetition. The demo
pre-trains once, and its report draws no verdict.
"""

from elev_ssl_jax.config import comparison, with_variant


def get_config(variant: str = ""):
    config = comparison("unet")
    config.experiment.methods = ("random", "glcnet", "elevation", "glcnet_elev")
    config.experiment.labels = (80, 100, 200, 500, 1000, 2000, 3000)
    config.experiment.pretrain.split = "unlabeled"
    config.experiment.pretrain.batch_size = 200
    if variant == "demo":
        config.experiment.labels = (20, 50, 150)
    return with_variant(config, variant)
