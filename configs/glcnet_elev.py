r"""GLCNet+Elevation (arXiv 2304.06857, section 5.2.1).

python -m elev_ssl_jax.main --config=configs/glcnet_elev.py --workdir=RUN
python -m elev_ssl_jax.main --config=configs/glcnet_elev.py:demo --workdir=RUN   # no data needed
"""

from elev_ssl_jax.config import default, with_variant


def get_config(variant: str = ""):
    config = default()
    # GLCNet: style features for the whole view, matching patches for its parts, both alike.
    config.objective.lam = 0.5
    config.objective.global_features = "style"
    config.batch_size = 200
    # Segmentation: mixed chips are as welcome as pure ones.
    config.data.name = "nwrc/segmentation"
    return with_variant(config, variant)
