import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, and limited")
def test_bad_input_of_every_kind_has_a_line_and_leaves_nothing():
    # Every sixtieth case; all of them: `python -m tests.campaign`.
    command = [sys.executable, "-m", "tests.campaign", "--every", "60"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert " 0 answered badly" in done.stdout
