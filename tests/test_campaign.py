import sys

import pytest

from tests import commands


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, and limited")
@pytest.mark.parametrize(
    "words", [("--every", "40", "--untrained"), ("--every", "60")], ids=" ".join
)
def test_bad_input_of_every_kind_has_a_line_and_leaves_nothing(words):
    # Some of the cases; all of them: `python -m tests.campaign`.
    done = commands.forked("tests.campaign", *words)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert " 0 answered badly" in done.stdout
