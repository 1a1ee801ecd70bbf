"""Which offsets above the committed one have finished: written to and read from the metadata of a commit. Pure.

A committed offset says that everything below it has finished. Records that have finished behind an unfinished one would
all be handled again after a crash, so the commit lists them in its metadata, as text
`magic:offset:timestamp:newest:first:packed`:

- `offset` is the committed one, and `timestamp` that of its record, the first unfinished one as a rule. A map that was
  written for another offset is stale, and one for another record at that offset is of a topic that was truncated or
  made anew.
- `newest` is the largest time stamp of all records that had been delivered: a finished record can't be newer.
- `packed` is base64 of zlib (which has a checksum) of samples, which are delivered records with the low bits of their
  time stamps, and then of one bit per offset from `first` on, where `first <= offset`. Offsets that do not fit into the
  metadata are cut off at the far end: those records are only handled again.

A log loses records only at its end (an unclean election), and new records then take their offsets. So the records of a
map are compared as they are delivered: from the first difference on, the map is ignored.

Invariants: I15.
"""

import base64
import binascii
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Self


MAX_BYTES = 4096
"""What a broker takes, unless its `offset.metadata.max.bytes` says otherwise."""

_MAGIC = "fsck2"
# Bounds the time that a map takes, since compaction leaves gaps of any size; far more than fits into the metadata.
_MOST_OFFSETS = 2**20
MOST_SAMPLES = 256
"""Records by which a map can be compared with the log, beside the first one."""
# The low bits of a time stamp, which are kept of a sample.
_CHECK = 0xFFFF
# Added to the number of samples when they are all the records that had been delivered.
_ALL = 0x8000
# The bit that marks a byte as not the last one of a number; and by how many bits an offset can be shifted at most.
_MORE, _MOST_SHIFT = 0x80, 63
# One sample per so many bytes of metadata: a sample takes three bytes packed and four as text, and samples may take a
# quarter of the metadata.
_BYTES_PER_SAMPLE = 16
# How many bytes of bits the first attempt packs.
_FIRST_GUESS = 8192
_MOST_GUESSES = 8


class OffsetMap:
    """Which offsets from `base` on have finished; an offset without a record may count as finished."""

    __slots__ = ("_all_sampled", "_base", "_bits", "_first", "_is_confirmed", "_newest", "_samples", "_timestamp")

    def __init__(  # noqa: PLR0913 - what it is made of
        self,
        base: int,
        timestamp: int,
        bits: bytes,
        *,
        first: int | None = None,
        newest: int | None = None,
        samples: Mapping[int, int] | None = None,
        all_sampled: bool = False,
    ) -> None:
        self._base = base
        self._timestamp = timestamp
        # Without zeros at its end.
        self._bits = bits
        self._first = base if first is None else first
        self._newest = newest
        self._samples = {} if samples is None else samples
        # Whether the samples are all records that were delivered: then no other record can have finished.
        self._all_sampled = all_sampled
        self._is_confirmed = False

    @classmethod
    def of(  # noqa: PLR0913 - what it is made of
        cls,
        base: int,
        timestamp: int,
        *,
        admitted: int,
        unfinished: Iterable[int],
        beyond: Iterable[int] = (),
        earlier: Self | None = None,
        delivered: Iterable[tuple[int, int]] = (),
        newest: int | None = None,
        all_delivered: bool = False,
    ) -> Self:
        """Make the map of all admitted offsets from `base` on but the `unfinished` ones.

        `beyond` are finished offsets above the admitted ones, and `earlier` is a map with more of them. `delivered` are
        offsets and time stamps of delivered records, in order (all of them, or a selection); `newest` is the largest
        time stamp of all.
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
        samples = {offset: timestamp & _CHECK for offset, timestamp in delivered}
        packed = bytes(bits)
        if earlier is not None and not earlier.ends_before(admitted):
            packed = earlier._or_into(packed, base, admitted)  # noqa: SLF001 - another of this class
            samples |= {offset: check for offset, check in earlier._samples.items() if offset >= admitted}  # noqa: SLF001
            all_delivered = all_delivered and earlier._all_sampled  # noqa: SLF001
            known = newest is not None and earlier._newest is not None  # noqa: SLF001
            newest = max(newest, earlier._newest) if known else earlier._newest  # noqa: SLF001
        return cls(base, timestamp, packed.rstrip(b"\0"), newest=newest, samples=samples, all_sampled=all_delivered)

    def _or_into(self, bits: bytes, base: int, start: int) -> bytes:
        """Add the finished offsets of this map from `start` on to bits that begin at `base`."""
        start = max(start, self._first)
        if start - base >= _MOST_OFFSETS:
            return bits
        mine = int.from_bytes(self._bits, "little") >> (start - self._first) << (start - base)
        both = int.from_bytes(bits, "little") | mine
        return both.to_bytes((both.bit_length() + 7) // 8, "little")[: _MOST_OFFSETS // 8]

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
            base, timestamp, newest, first, text = rest.split(":")
            unpacking = zlib.decompressobj()
            packed = unpacking.decompress(base64.b64decode(text, validate=True), _MOST_OFFSETS // 8 + 4096)
            samples, all_sampled, bits = _unpack(packed, int(first))
            offset_map = cls(
                *(int(base), int(timestamp), bits.rstrip(b"\0")),
                first=int(first),
                newest=int(newest) if newest else None,
                samples=samples,
                all_sampled=all_sampled,
            )
        except (ValueError, IndexError, binascii.Error, zlib.error) as error:
            raise ValueError(f"it is damaged: {error}") from error
        if not unpacking.eof or unpacking.unused_data or len(bits) > _MOST_OFFSETS // 8 + 1:
            raise ValueError("it is damaged: its end is missing, or there is more than its end")
        if int(base) != committed:
            raise ValueError(f"it belongs to offset {base}")
        return offset_map

    def dump(self, max_bytes: int = MAX_BYTES) -> str:
        """Return the metadata, with as many offsets as fit into so many bytes, or nearly; empty if none is finished."""
        samples = _thinned(self._samples, min(MOST_SAMPLES, max_bytes // _BYTES_PER_SAMPLE))
        text, fits, whole = "", 0, len(self._bits)
        # To pack all of a large map only to find it too large would take too long: begin with a part, and adjust it.
        count = min(whole, _FIRST_GUESS)
        for _ in range(_MOST_GUESSES):
            longer = self._text(count, samples)
            if len(longer) > max_bytes:
                whole = count
                count = count * max_bytes * 9 // (len(longer) * 10)
                if count <= fits:
                    break
                continue
            text, fits = longer, count
            if whole < len(self._bits) or fits == whole:
                break
            count = min(whole, 4 * count)
        return text

    def _text(self, count: int, samples: Mapping[int, int]) -> str:
        bits = self._bits[:count].rstrip(b"\0")
        if not bits:
            return ""
        end = self._first + 8 * len(bits)
        chosen = {offset: check for offset, check in samples.items() if offset < end}
        all_chosen = self._all_sampled and len(samples) == len(self._samples)
        packed = _pack(chosen, self._first, all_chosen=all_chosen) + bits
        newest = "" if self._newest is None else self._newest
        text = base64.b64encode(zlib.compress(packed)).decode()
        return f"{_MAGIC}:{self._base}:{self._timestamp}:{newest}:{self._first}:{text}"

    def __contains__(self, offset: int) -> bool:
        """Whether an offset is marked as finished."""
        place = offset - self._first
        return 0 <= place < 8 * len(self._bits) and bool(self._bits[place >> 3] & 1 << (place & 7))

    def claim(self, offset: int, timestamp: int | None) -> bool:
        """Return whether a record that is delivered now, in delivery order, had finished.

        If the first one is not the record that the map was written for, the whole map is ignored. From the first record
        on that differs from the map's sample, the rest of it is ignored.
        """
        if not self._is_confirmed:
            self._is_confirmed = True
            if offset != self._base or timestamp != self._timestamp:
                self._bits = b""
        if not self._bits or not self._may_be_original(offset, timestamp):
            self._bits = b""
            return False
        return offset in self

    def _may_be_original(self, offset: int, timestamp: int | None) -> bool:
        if timestamp is None:
            return False
        if self._newest is not None and timestamp > self._newest and offset in self:
            return False
        check = self._samples.get(offset)
        if check is None:
            return not (self._all_sampled and offset in self)
        return bool(check == timestamp & _CHECK)

    def timestamp_at(self, offset: int) -> int | None:
        """Return the time stamp of the record that it was written for, if that is at an offset."""
        return self._timestamp if offset == self._base else None

    def finished_from(self, offset: int) -> Iterator[int]:
        """Yield the offsets from `offset` on that are marked as finished, one by one."""
        return (each for each in range(max(offset, self._base), self.last + 1) if each in self)

    @property
    def last(self) -> int:
        """The last offset that is marked as finished; below the first one if none is."""
        return self._first + 8 * len(self._bits) - 9 + self._bits[-1].bit_length() if self._bits else self._first - 1

    def ends_before(self, offset: int) -> bool:
        """Whether no offset from `offset` on is marked as finished."""
        return not self._bits or offset > self.last

    @property
    def size(self) -> int:
        """How many bytes its bits take."""
        return len(self._bits)


def rebased(metadata: str, base: int, timestamp: int) -> str:
    """Return the metadata that `dump` has returned, for a later committed offset: its bits still hold."""
    magic, _, _, rest = metadata.split(":", 3)
    return f"{magic}:{base}:{timestamp}:{rest}"


def _thinned(samples: Mapping[int, int], most: int) -> dict[int, int]:
    """Choose up to so many of them, evenly spaced, with the last one."""
    offsets = sorted(samples)
    step = max(1, -(-len(offsets) // max(most, 1)))
    return {offset: samples[offset] for offset in offsets[::-1][::step][::-1]} if most else {}


def _pack(samples: Mapping[int, int], first: int, *, all_chosen: bool) -> bytes:
    """Encode whether they are all, their number, the steps between them (seven bits a byte), and their time stamps."""
    packed = bytearray((len(samples) + _ALL * all_chosen).to_bytes(2, "big"))
    for offset in samples:
        step, first = offset - first, offset
        while step >= _MORE:
            packed.append(step % _MORE | _MORE)
            step >>= 7
        packed.append(step)
    for check in samples.values():
        packed += check.to_bytes(2, "big")
    return bytes(packed)


def _unpack(packed: bytes, first: int) -> tuple[dict[int, int], bool, bytes]:
    """Return the samples that `_pack` has encoded, whether they are all, and the bytes that follow."""
    all_chosen, count = divmod(packed[0] << 8 | packed[1], _ALL)
    place = 2
    if count > MOST_SAMPLES:
        raise ValueError("too many samples")
    offsets = []
    for _ in range(count):
        step, shift = 0, 0
        while packed[place] & _MORE:
            step |= packed[place] % _MORE << shift
            place, shift = place + 1, shift + 7
            if shift > _MOST_SHIFT:
                raise ValueError("an offset without end")
        first += step | packed[place] << shift
        offsets.append(first)
        place += 1
    checks, bits = packed[place : place + 2 * count], packed[place + 2 * count :]
    samples = {offset: checks[2 * index] << 8 | checks[2 * index + 1] for index, offset in enumerate(offsets)}
    return samples, bool(all_chosen), bits
