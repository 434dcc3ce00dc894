r"""Dual-SimCLR with two Swin Transformers (Scheibenreif et al., EarthVision 2022; SEN12MS).

python -m elev_ssl_jax.main --config=configs/dual_swin.py --workdir=RUN
python -m elev_ssl_jax.main --config=configs/dual_swin.py:demo --workdir=RUN   # no data needed

The released code has no head between features and loss: --config.model.projection="()". Its
learning rate, by a mistake, stays at that of the warm-up's beginning: 5e-7, "constant".
"""

from elev_ssl_jax.config import two_sensors, with_variant


def get_config(variant: str = ""):
    config = two_sensors()
    config.model.encoder = "swin_t"
    config.model.projection = (768, 128)
    config.objective.temperature = 0.2
    # 300 epochs of batch 50, AdamW without decay, 20 epochs of warm-up, cosine.
    config.augment.crop_size = 224
    config.batch_size, config.epochs = 50, 300
    config.optimizer.update(name="adamw", learning_rate=5e-4, schedule="cosine")
    config.optimizer.warmup_epochs, config.optimizer.weight_decay = 20.0, 0.0
    config = with_variant(config, variant)
    if variant == "demo":
        config.optimizer.warmup_epochs = 2.0
    return config
