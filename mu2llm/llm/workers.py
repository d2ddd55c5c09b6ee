"""Does the same to many things at once, in threads, without holding more of them than are being worked on."""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")


def work_through(
    things: Iterable[tuple[str, Thing]],
    work: Callable[[Thing], Result],
    workers: int,
    stop: Callable[[], None],
) -> Generator[tuple[str, Result]]:
    """Yields (key, result) as each is done, in no order. The first error ends it.

    At the end, whatever the reason, `stop` is called, so that work under way ends soon, and is waited for.
    """
    if workers == 1:
        yield from ((key, work(thing)) for key, thing in things)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="llm")
    pending: dict[Future[Result], str] = {}
    try:
        for key, thing in things:
            pending[pool.submit(work, thing)] = key
            if len(pending) >= workers + 1:  # one waits ready for whoever is done first
                yield from _done(pending)
        while pending:
            yield from _done(pending)
    finally:
        stop()
        pool.shutdown(wait=True, cancel_futures=True)


def _done(pending: dict[Future[Result], str]) -> Iterator[tuple[str, Result]]:
    ready, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in ready:
        yield pending.pop(future), future.result()
