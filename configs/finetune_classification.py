r"""Fine-tunes ResNet18 and a linear layer to classify chips (arXiv 2304.06857, section 5.1.2).

python -m elev_ssl_jax.main --config=configs/finetune_classification.py --workdir=RUN \
    --config.init_from=PRETRAINED
python -m elev_ssl_jax.main --config=configs/finetune_classification.py:demo --workdir=RUN

PRETRAINED is the --workdir of a pre-training; without it the encoder is random.
"""

from elev_ssl_jax.config import fine_tuning, with_variant


def get_config(variant: str = ""):
    config = fine_tuning("linear")
    return with_variant(config, variant)
