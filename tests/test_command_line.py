import sys

import pytest
from absl import flags
from ml_collections import config_flags

from elev_ssl_jax import command_line


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
    known = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", known)
    config = config_flags.DEFINE_config_file("config", flag_values=known)
    arguments = ["main", "--config=configs/study.py", f"--config.experiment.methods={given}"]
    monkeypatch.setattr(sys, "argv", arguments)  # where the fields to override are looked for
    assert command_line.parse(arguments, config) == ["main"]
    assert config.value.experiment.methods == expected
    assert config.value.data.inputs == ("image",)
