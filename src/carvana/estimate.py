"""How long a prediction will take and how large it will be, measured on a few of its photos."""

import math
import time
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from carvana.submission import HEADER, LEVEL


class Estimate(NamedTuple):
    """photos: measured; rate: photos a second; bytes: of a row, as text and compressed."""

    photos: int
    rate: float
    row_bytes: float
    packed_bytes: float

    def hours(self, photos: int) -> float:
        return photos / self.rate / 3600

    def gigabytes(self, photos: int) -> tuple[float, float]:
        """Size of the CSV, plain and compressed."""
        return tuple((len(HEADER) + 1 + photos * each) / 1e9 for each in (self.row_bytes, self.packed_bytes))

    def shards(self, photos: int, hours: float) -> int:
        """Into how many shards the photos are to be cut so that each takes at most so many hours."""
        return math.ceil(self.hours(photos) / hours)


def measure(rows: Iterator[tuple[str, str]], first: int, enough: int, seconds: float) -> Estimate:
    """Takes rows until there are `enough` or the time is over. The `first` ones warm up and do not count."""
    taken, started = [], time.monotonic()
    for name, rle in rows:
        taken.append(f"{name},{rle}\n")
        now = time.monotonic()
        if len(taken) == first:
            started = now
        elif len(taken) >= enough or (len(taken) > 2 * first and now - started > seconds):
            break
    measured = max(len(taken) - first, 1)
    text = "".join(taken).encode()
    packed = len(zlib.compress(text, LEVEL))
    return Estimate(measured, measured / max(now - started, 1e-9), len(text) / len(taken), packed / len(taken))
