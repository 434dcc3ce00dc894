r"""Fine-tunes a ResNet18 U-Net to segment chips (arXiv 2304.06857, section 5.2.2).

python -m elev_ssl_jax.main --config=configs/finetune_segmentation.py --workdir=RUN \
    --config.init_from=PRETRAINED
python -m elev_ssl_jax.main --config=configs/finetune_segmentation.py:demo --workdir=RUN

PRETRAINED is the --workdir of a pre-training; without it the encoder is random.
"""

from elev_ssl_jax.config import fine_tuning, with_variant


def get_config(variant: str = ""):
    config = fine_tuning("unet")
    return with_variant(config, variant)
