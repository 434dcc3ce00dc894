r"""Radar, optics and both, supervised and pre-trained: the tables of Scheibenreif et al. 2022.

python -m elev_ssl_jax.main --config=configs/fusion_table.py --workdir=RUN        # one class a chip
python -m elev_ssl_jax.main --config=configs/fusion_table.py:multi --workdir=RUN  # several
python -m elev_ssl_jax.main --config=configs/fusion_table.py:demo --workdir=RUN   # no data needed

Pre-trains on SEN12MS, fine-tunes and tests on DFC2020. Three pre-trainings a method show large
differences only: --config.experiment.pretrain_seeds=5 or 10 adds to what is there. Supervised
methods have the learning rate of the others. With chips that have elevation, "dual_simclr_elev"
among --config.experiment.methods learns that, too. The demo has some of the methods, five
pre-trainings each.
"""

from elev_ssl_jax.config import fusion, with_variant


def get_config(variant: str = ""):
    several, demo = "multi" in variant.split("_"), "demo" in variant.split("_")
    if set(variant.split("_")) - {"", "multi", "demo"}:
        raise ValueError(f"there is no variant {variant!r}; there are :multi, :demo, :multi_demo")
    methods = ("only_s1", "only_s2", "early_fusion", "late_fusion", "simclr_rgb")
    methods += ("dual_simclr", "dual_simclr_frozen", "mma", "mma_frozen")
    if demo:  # fewer, but with encoders as they begin, and elevation, which SEN12MS doesn't have
        methods = ("only_s1", "only_s2", "late_fusion", "late_fusion_frozen")
        methods += ("dual_simclr", "dual_simclr_frozen", "dual_simclr_elev_frozen")
    config = fusion("present" if several else "commonest", methods)
    config = with_variant(config, "demo" if demo else "")
    if demo:  # repeated, so that the report can tell differences from noise
        config.data.synthetic.chips = 1000
        config.experiment.pretrain_seeds, config.experiment.seeds = 5, 1
        config.experiment.pretrain.epochs = 20
    return config
