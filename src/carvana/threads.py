"""Work beside other work: OpenCV and PyTorch let go of Python's lock while they compute."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch


def map_in_threads(function: Callable, items: Iterable, threads: int, waiting: int) -> Iterator:
    """`map` in threads: results in the items' order, and no item is asked for while `waiting` ones are unfinished."""
    pending = deque()
    # PyTorch counts for each thread: these use one core each, and the caller's thread as many as before.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) == waiting:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
