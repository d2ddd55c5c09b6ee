"""Work on many volumes with all cores."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import parent_process
from typing import TypeVar

from threadpoolctl import threadpool_limits

A = TypeVar("A")
B = TypeVar("B")

FEW = 4  # items that are not worth starting processes for


def each(function: Callable[[A], B], items: Sequence[A], workers: int | None = None) -> Iterator[B]:
    """Yields `function(item)` for each item in order, worked on by `workers` processes (default: one a core).

    A worker computes with one thread and dies with this process, also when that is killed. Raises OSError
    when the system kills a worker.
    """
    workers = min(workers or os.cpu_count() or 1, len(items))
    if workers < 2 or len(items) < FEW:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(workers, initializer=_start) as pool:
        try:
            yield from pool.map(function, items)
        except BrokenProcessPool:
            raise OSError(
                f"the system killed one of {workers} worker processes, as it does when memory runs out; "
                "run it again with fewer workers"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threadpool_limits(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
