"""For how long no commit of a consumer has succeeded. Pure: the clock is the caller's.

Only a successful commit resets it. An assignment does not: in an endless series of rebalances the age would begin anew
every few seconds, although nothing is ever committed. Failures also end when other members own the partitions, or have
committed their offsets.
"""

# Longer than the time between the ends of two failed attempts: an older failure says nothing about the present.
_RECENT_SEC = 15.0


class CommitClock:
    """The failures of one consumer's commits."""

    __slots__ = ("_attempt_since", "_failed_at", "_since", "error", "failures")

    def __init__(self) -> None:
        self.error: str = ""
        """Why the last attempt failed; empty after a success."""
        self.failures: int = 0
        """The number of failed attempts since the last success."""
        self._attempt_since: float | None = None
        # When the first failed attempt since the last success began.
        self._since: float | None = None
        self._failed_at = 0.0

    def begin(self, now: float) -> None:
        """Note that an attempt begins."""
        self._attempt_since = now

    def end(self) -> None:
        """Note that the attempt is over; a cancelled one neither succeeds nor fails."""
        self._attempt_since = None

    def fail(self, error: str, now: float) -> None:
        """Note that the attempt has failed."""
        if self._since is None:
            self._since = now if self._attempt_since is None else self._attempt_since
        self._failed_at = now
        self.failures += 1
        self.error = error

    def forget(self) -> None:
        """Forget the failures: a commit has succeeded, or other members have committed the offsets."""
        self._since = None
        self.error, self.failures = "", 0

    def age_sec(self, now: float, *, is_held: bool) -> float:
        """Return for how long commits have been failing; `is_held`: commits are held, and offsets wait for them."""
        if self._since is None:
            return 0.0 if self._attempt_since is None else now - self._attempt_since
        # After a rebalance the next attempt may be long in coming: only that one can show whether commits still fail.
        return now - self._since if is_held or now - self._failed_at < _RECENT_SEC else 0.0
