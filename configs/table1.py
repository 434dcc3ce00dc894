r"""Table 1 of arXiv 2304.06857: classification with 80 labels, four initialisations.

python -m elev_ssl_jax.main --config=configs/table1.py --workdir=RUN
python -m elev_ssl_jax.main --config=configs/table1.py:demo --workdir=RUN   # no data needed

Each method is pre-trained three times, and each pre-training fine-tuned with ten seeds. Three
repetitions show large differences only: --config.experiment.pretrain_seeds=5 or 10 adds to what is
there. --config.experiment.label_draws=1 draws the labelled chips anew in each repetition. The demo
pre-trains once, and its report draws no verdict.
"""

from elev_ssl_jax.config import comparison, with_variant


def get_config(variant: str = ""):
    config = comparison("linear")
    config.experiment.methods = ("random", "simclr", "elevation", "simclr_elev")
    return with_variant(config, variant)
