r"""Table 2 of arXiv 2304.06857: segmentation with 80 labels, four initialisations.

python -m elev_ssl_jax.main --config=configs/table2.py --workdir=RUN
python -m elev_ssl_jax.main --config=configs/table2.py:demo --workdir=RUN   # no data needed
"""

from elev_ssl_jax.config import fine_tuning, with_variant


def get_config(variant: str = ""):
    config = fine_tuning("unet")
    config.task = "experiment"
    config.experiment.methods = ("random", "glcnet", "elevation", "glcnet_elev")
    config.experiment.pretrain.batch_size = 200
    return with_variant(config, variant)
