"""For how long no commit of a consumer has succeeded. Pure: the clock is the caller's.

Only a commit that succeeds resets it. A rebalance does not: in an endless one each assignment would, and nothing would
ever be committed. Failures are over without a success only when others have the partitions, or have committed them.
"""

# Longer than from the end of one failed attempt to that of the next: what is older says nothing about now.
_RECENT_SEC = 15.0


class CommitClock:
    """The failures of one consumer's commits."""

    __slots__ = ("_attempt_since", "_failed_at", "_since", "error", "failures")

    def __init__(self) -> None:
        self.error: str = ""
        """Why the last attempt has failed; empty if none has since the last success."""
        self.failures: int = 0
        """How many attempts have failed since the last success."""
        self._attempt_since: float | None = None
        # When the first attempt began that has failed since the last success.
        self._since: float | None = None
        self._failed_at = 0.0

    def begin(self, now: float) -> None:
        """Note that an attempt begins."""
        self._attempt_since = now

    def end(self) -> None:
        """Note that the attempt is over, be it by a cancellation, which says nothing."""
        self._attempt_since = None

    def fail(self, error: str, now: float) -> None:
        """Note that the attempt has failed."""
        if self._since is None:
            self._since = now if self._attempt_since is None else self._attempt_since
        self._failed_at = now
        self.failures += 1
        self.error = error

    def forget(self) -> None:
        """Forget the failures: a commit has succeeded, or others have committed what was to be committed."""
        self._since = None
        self.error, self.failures = "", 0

    def age_sec(self, now: float, *, is_held: bool) -> float:
        """Return for how long commits have been failing; `is_held`: something is to be committed, and may not be."""
        if self._since is None:
            return 0.0 if self._attempt_since is None else now - self._attempt_since
        # Between failures lie the drain and the handlers of the next assignment: only the next attempt can tell.
        return now - self._since if is_held or now - self._failed_at < _RECENT_SEC else 0.0
