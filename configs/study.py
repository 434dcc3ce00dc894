r"""Does elevation help? Methods and controls, several pre-trainings, draws of labels and tasks.

python -m elev_ssl_jax.main --config=configs/study.py --workdir=RUN
python -m elev_ssl_jax.main --config=configs/study.py:small --workdir=RUN   # a quarter as wide
python -m elev_ssl_jax.main --config=configs/study.py:demo --workdir=RUN    # no data needed

Each of five methods is pre-trained five times. Every encoder is judged on frozen features, by a
linear probe and by the nearest neighbours, for ten draws of the labelled chips, and fine-tuned. The
shuffled control has elevation's numbers, which say nothing of the image: what SimCLR+Elevation
gains over it is what elevation tells. --config.experiment.budget_hours=8 ends after as many whole
repetitions as fit. The demo pre-trains twice, and its report can draw no verdict of small gains.
"""

from elev_ssl_jax.config import comparison, with_variant


def get_config(variant: str = ""):
    config = comparison("linear")
    settings = config.experiment
    settings.methods = (
        *("random", "statistics", "supervised"),
        *("simclr", "simclr_elev", "glcnet", "glcnet_elev", "simclr_shuffled"),
    )
    settings.tasks = ("probe", "knn", "linear")
    settings.labels = (80, 400)
    settings.pretrain_seeds, settings.label_draws, settings.seeds = 5, 10, 1
    # C is chosen on chips that no probe learns from.
    settings.split, config.data.validation_split = "labeled[:2000]", "labeled[2000:]"
    if variant in ("small", "demo"):
        config.model.width, config.model.projection = 0.25, (128, 64)
    if variant == "small":
        settings.pretrain.epochs, settings.pretrain.batch_size = 60, 64
        return config
    if variant == "demo":
        settings.methods = ("random", "statistics", "simclr", "simclr_elev", "simclr_shuffled")
        settings.labels, settings.label_draws = (30,), 3
        settings.split, config.data.validation_split = "labeled[:60]", "labeled[60:]"
        config.data.probe_split = settings.split
    config = with_variant(config, variant, ":small")
    if variant == "demo":
        settings.pretrain_seeds, settings.seeds = 2, 1
    return config
