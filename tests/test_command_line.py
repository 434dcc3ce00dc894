import sys

import pytest
from absl import flags
from ml_collections import config_flags

from elev_ssl_jax import command_line
from tests import commands
from tests.campaign.world import CONFIGS


def parse(monkeypatch, *arguments):
    known = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", known)
    config = config_flags.DEFINE_config_file("config", flag_values=known)
    words = ["main", *arguments]
    monkeypatch.setattr(sys, "argv", words)  # where the fields to override are looked for
    assert command_line.parse(words, config) == ["main"]
    return config.value


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # in ml_collections
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("random,simclr", ("random", "simclr")),
        ("('random', 'simclr')", ("random", "simclr")),
        ("random", ("random",)),
    ],
)
def test_names_are_parted_by_commas(monkeypatch, given, expected):
    words = ("--config=configs/study.py", f"--config.experiment.methods={given}")
    config = parse(monkeypatch, *words)
    assert config.experiment.methods == expected
    assert config.data.inputs == ("image",)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # in ml_collections
@pytest.mark.parametrize(
    "words",
    [
        ("--config=simclr_elev:demo",),
        ("--config", "simclr_elev:demo"),
        ("-config=simclr_elev:demo",),
        (f"--config={CONFIGS / 'simclr_elev.py'}:demo",),
    ],
)
def test_a_configuration_is_found_by_name_or_path_wherever_one_is(monkeypatch, tmp_path, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "simclr_elev").mkdir()  # a run of that name, say
    config = parse(monkeypatch, *words, "--config.epochs=3")
    assert (config.epochs, config.objective.alpha, config.data.synthetic.chips > 0) == (
        3,
        0.5,
        True,
    )


@pytest.mark.parametrize("name", ["simclr_elevation:demo", "configs/simclr.py"])
def test_a_name_that_is_none_is_told_with_those_that_are(monkeypatch, tmp_path, capsys, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        parse(monkeypatch, f"--config={name}")
    said = capsys.readouterr().err
    assert f"--config={name.split(':')[0]}: there is no such file" in said
    assert "glcnet, glcnet_elev" in said
    assert "study" in said
    assert said.count("\n") == 1


# The others are started in tests of what they do.
COMMANDS = ["area", "convert", "features", "plan", "polygons", "predict", "report"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_starts_by_itself_and_says_what_it_is_for(name):
    done = commands.run("-m", f"elev_ssl_jax.{name}", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m elev_ssl_jax.{name} " in done.stdout
