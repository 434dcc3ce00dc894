"""A trace of some steps, to see what they spend their time on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

_LATER = 3  # steps before, by when all is compiled and the first batches are there


@contextmanager
def profiled(folder: Path, first: int, count: int) -> Iterator[Callable[[int, Any], None]]:
    """A function that is told of each step, with the state, before that is taken.

    It traces `count` steps into `folder`, for XProf or TensorBoard, beginning soon after step
    `first`; none if that is 0. It waits for the device at the first and the last of them alone.
    """
    start, running = first + _LATER, False

    def tell(step: int, state: Any) -> None:
        nonlocal running
        if count and step == start:
            jax.block_until_ready(state)
            jax.profiler.start_trace(folder)
            running = True
        elif running and step == start + count:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            running = False
            print(f"\na trace of steps {start} to {step - 1}: {folder}")

    try:
        yield tell
    finally:
        if running:  # the run ends before
            jax.profiler.stop_trace()
