"""What each record is: its key, and how long its handler takes. Pure, and the same in every process of a seed."""

from typing import NamedTuple


_MASK = 2**64 - 1
_SLOW_PER_MILLE = 2
_SLOW_SEC = (0.3, 2.0)
_QUICK_SEC = (0.0, 0.02)


class Load(NamedTuple):
    """Records 0 to `records` - 1, whose numbers ascend with the offsets of each partition."""

    seed: int
    records: int
    keys: int = 2_000
    partitions: int = 12

    def key(self, number: int) -> int:
        """Return the key of a record."""
        return self._mixed(number) % self.keys

    def seconds(self, number: int) -> float:
        """Return how long its handler takes: next to nothing mostly, and long for a few."""
        mixed = self._mixed(number) >> 24
        low, high = _SLOW_SEC if mixed % 1_000 < _SLOW_PER_MILLE else _QUICK_SEC
        return low + (high - low) * (mixed // 1_000 % 1_000) / 1_000

    def _mixed(self, number: int) -> int:
        # SplitMix64: as random as is needed here, and cheap.
        mixed = (self.seed + number * 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return mixed ^ (mixed >> 31)
