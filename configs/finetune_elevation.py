r"""Fine-tunes a ResNet18 U-Net to tell elevation: how well is it known from images alone?

python -m elev_ssl_jax.main --config=configs/finetune_elevation.py --workdir=RUN \
    --config.init_from=PRETRAINED
python -m elev_ssl_jax.main --config=configs/finetune_elevation.py:demo --workdir=RUN

Another quantity, cut with the chips, is told by --config.finetune.target=quantity.

PRETRAINED is the --workdir of a pre-training; without it the encoder is random. The settings are
those of section 5.2.2 of arXiv 2304.06857, with a squared error in place of classes.
"""

from elev_ssl_jax.config import fine_tuning, with_variant


def get_config(variant: str = ""):
    config = fine_tuning("regression")
    return with_variant(config, variant)
