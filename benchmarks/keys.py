"""The keys of a topic's records: an endless sequence, the same in every run."""

import collections
import itertools
import random
from collections.abc import Iterator
from typing import Literal


Keys = Literal["none", "uniform", "zipf"]
"""No key; each of `KEY_COUNT` equally likely; or the n-th of them in proportion to n ** -`ZIPF_EXPONENT`."""

KEY_COUNT = 10_000
ZIPF_EXPONENT = 1.1
_SEED = 20
_CHUNK = 10_000


def keys_of(keys: Keys) -> Iterator[bytes | None]:
    """Yield the key of one record after the other."""
    if keys == "none":
        yield from itertools.repeat(None)
    names = [b"key-%d" % rank for rank in range(1, KEY_COUNT + 1)]
    weights = [rank**-ZIPF_EXPONENT if keys == "zipf" else 1.0 for rank in range(1, KEY_COUNT + 1)]
    random_ = random.Random(_SEED)  # the same in every run
    while True:
        yield from random_.choices(names, weights, k=_CHUNK)


def hottest(keys: Keys, records: int) -> int:
    """Return how many of the first `count` records have the most frequent key."""
    counts = collections.Counter(itertools.islice(keys_of(keys), records))
    return counts.most_common(1)[0][1]
