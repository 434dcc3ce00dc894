"""Processes that work side by side, and end when the one that started them does."""

import collections
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from elev_ssl_jax.errors import InputError

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def mapped(
    function: Callable[[_Task], _Result],
    tasks: Iterable[_Task],
    workers: int,
    start: Callable[..., None] | None = None,
    *arguments: Any,
    ahead: int | None = None,
) -> Iterator[_Result]:
    """A function of each task, in their order, computed in several processes.

    Args:
      function: Of a module, so that it can be sent.
      tasks: Sent, too.
      workers: How many processes.
      start: Called in each of them first.
      *arguments: Of `start`.
      ahead: How many tasks are taken on before their results are asked for; None is all.

    Raises:
      InputError: One of them was killed.
    """
    # Not forked: this one has threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start, (start, *arguments)) as pool:
        try:
            waiting: collections.deque[Future[_Result]] = collections.deque()
            for task in tasks:
                waiting.append(pool.submit(function, task))
                if ahead is not None and len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process was killed, perhaps for want of memory; lower --workers, and run "
                "the same command again"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)  # of an error or an interruption


def _start(start, *arguments):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first ends the others
    # A process that is killed ends no other: what it leaves would go on writing.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start(*arguments)


def _end_with_parent():
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
