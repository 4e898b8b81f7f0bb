"""Work done in threads while earlier results are in use: decoding goes on while the model computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], *, depth: int = 1, workers: int = 1
) -> Iterator[Result]:
    """Gives the result of each item, in order, and meanwhile works on the next ones.

    Args:
        work: what is done with each; it runs in other threads.
        items: taken up one by one.
        depth: results that are worked on, or wait, beyond the one in use.
        workers: threads.

    Raises:
        Exception: what `work` raised, in place of its result; items that are not begun are dropped.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
