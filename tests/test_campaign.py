import sys

import pytest

from tests import commands


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, and limited")
def test_bad_input_of_every_kind_has_a_line_and_leaves_nothing():
    # Every sixtieth case; all of them: `python -m tests.campaign`.
    done = commands.forked("tests.campaign", "--every", "60")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert " 0 answered badly" in done.stdout
