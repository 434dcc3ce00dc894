import importlib.util
from pathlib import Path

import pytest

from elev_ssl_jax.checks import check, without_effect
from elev_ssl_jax.config import default
from elev_ssl_jax.finetuning.experiment import pretrain_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_and_its_demo_are_valid(path):
    get_config = load(path)
    for config in (get_config(), get_config("demo")):
        check(config)
        assert without_effect(config) == []
        if config.task == "experiment":
            for method in set(config.experiment.methods) - {"random"}:
                check(pretrain_config(config, method))
    with pytest.raises(ValueError, match="nope"):
        get_config("nope")


def test_relief_is_the_demos_and_the_papers_settings_stay():
    def settings(name, variant=""):
        config = load(next(path for path in CONFIGS if path.stem == name))(variant)
        its = config if config.task == "pretrain" else config.experiment.pretrain
        loss, model = config.loss, config.model
        return its.optimizer.learning_rate, loss.relief_weight, model.elevation_padding

    for name in ("simclr_elev", "table1"):
        assert settings(name) == (1e-3, 1.0, "zeros")
        assert settings(name, "demo") == (3e-3, 20.0, "edge")
    assert settings("simclr", "demo") == (3e-3, 1.0, "zeros")  # it has no elevation
    # LARS has other rates.
    assert settings("large_batch", "demo")[0] == settings("large_batch")[0] == 0.3


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_variant_sets_only_what_its_task_uses(path):
    config, plain = load(path)("demo"), default()
    if config.task != "experiment":
        assert config.experiment.to_dict() == plain.experiment.to_dict()
    else:
        assert config.data.split == plain.data.split
        assert config.experiment.pretrain_seeds == 1
        assert load(path)().experiment.pretrain_seeds == 3
