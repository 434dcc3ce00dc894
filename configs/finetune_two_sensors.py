r"""Fine-tunes encoders of Sentinel-1 and Sentinel-2 (DFC2020; Scheibenreif et al. 2022).

python -m elev_ssl_jax.main --config=configs/finetune_two_sensors.py --workdir=RUN \
    --config.init_from=PRETRAINED
python -m elev_ssl_jax.main --config=configs/finetune_two_sensors.py:demo --workdir=RUN

PRETRAINED is the --workdir of configs/dual_simclr.py, mma.py or dual_swin.py, whose model.encoder
must be said here, too; without it the encoders are random. Variants: one class a chip, :multi
several, :pixels one a pixel; :demo, :multi_demo and :pixels_demo need no data.
"""

from elev_ssl_jax.config import two_sensor_fine_tuning, with_variant

_TARGETS = {"": "commonest", "multi": "present", "pixels": "mask"}


def get_config(variant: str = ""):
    target, _, demo = variant.rpartition("_") if variant.endswith("demo") else (variant, "", "")
    if target not in _TARGETS:
        raise ValueError(f"there is no variant {variant!r}; there are :multi, :pixels and :demo")
    return with_variant(two_sensor_fine_tuning(_TARGETS[target]), demo)
