"""Which offsets above the committed one are finished already, to and from the metadata of a commit. Pure.

A commit says "everything below is finished". What has finished behind an unfinished record would all be handled again
after a crash, so it travels beside the offset as text, `magic:offset:timestamp:bits`:

- `offset` is the committed one, and `timestamp` that of its record, the first unfinished one as a rule. A map that was
  written for another offset is stale, and one for another record at that offset is of a topic that was truncated or
  made anew.
- `bits` has one bit per offset from there on, packed by zlib, which checks it, and base64. What does not fit into the
  metadata is cut off from the far end: it is only handled again.
"""

import base64
import binascii
import zlib
from collections.abc import Iterable
from typing import Self


MAX_BYTES = 4096
"""What a broker takes, unless its `offset.metadata.max.bytes` says otherwise."""

_MAGIC = "fsck1"
# Far more than fits into the metadata, far less than hurts: compaction leaves gaps of any size.
_MOST_OFFSETS = 2**20


class OffsetMap:
    """The finished ones of the offsets from `base` on; offsets that hold no record may count as finished."""

    __slots__ = ("_base", "_bits", "_is_confirmed", "_timestamp")

    def __init__(self, base: int, timestamp: int, bits: bytes) -> None:
        self._base = base
        self._timestamp = timestamp
        self._bits = bits
        self._is_confirmed = False

    @classmethod
    def of(
        cls, base: int, timestamp: int, *, admitted: int, unfinished: Iterable[int], beyond: Iterable[int] = ()
    ) -> Self:
        """Make the map of what was admitted but the `unfinished` offsets, which are at or above `base`.

        `beyond` are the finished ones among those that are not admitted yet.
        """
        count = min(admitted - base, _MOST_OFFSETS)
        bits = bytearray(b"\xff" * (count // 8 + 1))
        bits[-1] = (1 << count % 8) - 1
        for offset in unfinished:
            place = offset - base
            if place < count:
                bits[place >> 3] &= ~(1 << (place & 7))
        for offset in beyond:
            place = offset - base
            if 0 <= place < _MOST_OFFSETS:
                bits.extend(bytes(max(0, (place >> 3) + 1 - len(bits))))
                bits[place >> 3] |= 1 << (place & 7)
        return cls(base, timestamp, bytes(bits.rstrip(b"\0")))

    @classmethod
    def parse(cls, metadata: str, committed: int) -> Self:
        """Read what `dump` has written.

        Raises:
            ValueError: it is not a map, is damaged, or was written for another offset than the committed one.

        """
        magic, _, rest = metadata.partition(":")
        if magic != _MAGIC:
            raise ValueError("it is not of this library, or of another version of it")
        try:
            base, timestamp, packed = rest.split(":")
            unpacking = zlib.decompressobj()
            bits = unpacking.decompress(base64.b64decode(packed, validate=True), _MOST_OFFSETS // 8)
            offset_map = cls(int(base), int(timestamp), bits)
        except (ValueError, binascii.Error, zlib.error) as error:
            raise ValueError(f"it is damaged: {error}") from error
        if not unpacking.eof or unpacking.unused_data:
            raise ValueError("it is damaged: its end is missing, or there is more than its end")
        if int(base) != committed:
            raise ValueError(f"it belongs to offset {base}")
        return offset_map

    def dump(self, max_bytes: int = MAX_BYTES) -> str:
        """Return the metadata, with as many offsets as fit into so many bytes; empty if none is finished."""
        text = self._text(len(self._bits))
        if len(text) > max_bytes:
            fits, too_many = 0, len(self._bits)
            while too_many - fits > 1:
                middle = (fits + too_many) // 2
                if len(self._text(middle)) > max_bytes:
                    too_many = middle
                else:
                    fits = middle
            text = self._text(fits)
        return text

    def _text(self, count: int) -> str:
        bits = self._bits[:count].rstrip(b"\0")
        if not bits:
            return ""
        return f"{_MAGIC}:{self._base}:{self._timestamp}:{base64.b64encode(zlib.compress(bits)).decode()}"

    def __contains__(self, offset: int) -> bool:
        """Whether an offset is marked as finished."""
        place = offset - self._base
        return 0 <= place < 8 * len(self._bits) and bool(self._bits[place >> 3] & 1 << (place & 7))

    def claim(self, offset: int, timestamp: int | None) -> bool:
        """Return whether a record that is delivered now, in delivery order, had finished.

        The first one decides: if it is not the record that the map was written for, nothing of it is believed.
        """
        if not self._is_confirmed:
            if offset != self._base or timestamp != self._timestamp:
                self._bits = b""
            self._is_confirmed = True
        return offset in self

    def finished_from(self, offset: int) -> Iterable[int]:
        """Return the offsets from `offset` on that are marked as finished."""
        end = self._base + 8 * len(self._bits)
        return (each for each in range(max(offset, self._base), end) if each in self)

    def ends_before(self, offset: int) -> bool:
        """Whether nothing from `offset` on is marked as finished."""
        return not self._bits or offset >= self._base + 8 * len(self._bits)
