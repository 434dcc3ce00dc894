r"""Swin and ResNet50, from scratch, frozen and fine-tuned (Scheibenreif et al., EarthVision 2022).

python -m elev_ssl_jax.main --config=configs/swin_table.py --workdir=RUN      # a class a chip
python -m elev_ssl_jax.main --config=configs/swin_table.py:pixels --workdir=RUN   # and a pixel
python -m elev_ssl_jax.main --config=configs/swin_table.py:demo --workdir=RUN   # no data needed
python -m elev_ssl_jax.main --config=configs/swin_table.py:pixels_demo --workdir=RUN

Pixels: SwinUNet, the baseline UNet, and the mean of both's probabilities. All pre-trainings have
the schedule that the paper means for Swin, and all fine-tunings one learning rate, where the
released code has a tenth of it for Swin from scratch.
"""

from elev_ssl_jax.config import fusion, with_variant


def get_config(variant: str = ""):
    pixels, demo = "pixels" in variant.split("_"), "demo" in variant.split("_")
    if set(variant.split("_")) - {"", "pixels", "demo"}:
        raise ValueError(f"there is no variant {variant!r}; there are :pixels, :demo, :pixels_demo")
    swin = ("late_swin", "dual_swin_frozen", "dual_swin")
    others = ("plain_unet", "ensemble")
    if not pixels:
        others = ("late_resnet50", "dual_resnet50_frozen", "dual_resnet50")
    config = fusion("mask" if pixels else "commonest", (*swin, *others))
    config.augment.crop_size = 224
    config.objective.temperature = 0.2
    pretrain = config.experiment.pretrain
    pretrain.batch_size, pretrain.epochs = 50, 300
    pretrain.optimizer.update(name="adamw", learning_rate=5e-4, schedule="cosine")
    pretrain.optimizer.warmup_epochs, pretrain.optimizer.weight_decay = 20.0, 0.0
    if pixels:
        config.finetune.head = "swin_unet"
    config = with_variant(config, "demo" if demo else "")
    if demo:  # Swin is slow on a CPU
        pretrain.optimizer.warmup_epochs = 2.0
        config.data.synthetic.chips = 600
        config.experiment.seeds = 1
    return config
