r"""Radar and optics by the share of labels: the figure of Scheibenreif et al. 2022.

python -m elev_ssl_jax.main --config=configs/fusion_fractions.py --workdir=RUN
python -m elev_ssl_jax.main --config=configs/fusion_fractions.py:demo --workdir=RUN   # no data

1, 10, 50 and 100 % of the labelled patches, of every class its share and one at least, drawn anew
for each pre-training; rare classes then come more often. (The paper draws from a list in which they
do so already, so that its 10 % are 23 % of the patches.)
"""

from elev_ssl_jax.config import fusion, with_variant


def get_config(variant: str = ""):
    config = fusion("commonest", ("early_fusion", "late_fusion", "dual_simclr", "mma"))
    config.experiment.labels = (0.01, 0.1, 0.5, 1.0)
    config.experiment.label_draws = 1
    config = with_variant(config, variant)
    if variant == "demo":
        config.experiment.labels = (0.1, 0.3, 1.0)  # of 150
    return config
