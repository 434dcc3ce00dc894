r"""SimCLR+Elevation (arXiv 2304.06857, section 5.1.1).

python -m elev_ssl_jax.main --config=configs/simclr_elev.py --workdir=RUN
python -m elev_ssl_jax.main --config=configs/simclr_elev.py:demo --workdir=RUN   # no data needed

Your own data: --config.data.name=chips/segmentation --config.data.dir=DIR, and
--config.data.value_range=auto for their sensor.
"""

from elev_ssl_jax.config import default, with_variant


def get_config(variant: str = ""):
    config = default()

    # Data: all but the 80 chips that fine-tuning learns from, and the test chips.
    config.data.name = "nwrc/classification"
    config.data.split = "unlabeled+labeled[80:]"

    # Positive and negative pairs: crops, flips, colour jitter, grayscale. The elevation branch:
    # flips, weaker jitter and grayscale, no crop.
    config.augment.contrastive.crop_scale = (0.7, 1.0)
    config.augment.elevation.jitter_probability = 0.3

    # ResNet18, a U-Net decoder for elevation, NT-Xent at temperature 0.5, both losses alike.
    config.model.encoder = "resnet18"
    config.objective.alpha = 0.5
    config.objective.lam = 1.0
    config.objective.temperature = 0.5

    # 200 epochs of batch 256, Adam with weight decay, cosine decay of the learning rate.
    config.epochs = 200
    config.batch_size = 256
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1e-4

    return with_variant(config, variant)
