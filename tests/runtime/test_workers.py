import os
import signal

import pytest

from elev_ssl_jax.errors import InputError
from elev_ssl_jax.runtime.workers import mapped


def end_at_two(task):
    if task == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def test_a_worker_that_is_killed_is_told_in_one_line():
    with pytest.raises(InputError, match=r"a worker process was killed.*lower --workers"):
        list(mapped(end_at_two, range(4), 2))
