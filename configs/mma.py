r"""Multi-modal alignment: two sensors' maps of one place are alike, pixel by pixel (SEN12MS).

python -m elev_ssl_jax.main --config=configs/mma.py --workdir=RUN
python -m elev_ssl_jax.main --config=configs/mma.py:demo --workdir=RUN   # no data needed

After Windsor et al. (arXiv 2107.06652), as Scheibenreif et al. 2022 use it.
"""

from elev_ssl_jax.config import two_sensors, with_variant


def get_config(variant: str = ""):
    config = two_sensors()
    config.model.encoder = "vgg"
    # The mean over pixels of the cosine of the two maps, against the other sensor's maps of other
    # places; no head.
    config.objective.global_features = "map"
    config.objective.negatives = "across"
    config.objective.temperature = 0.1
    return with_variant(config, variant)
