"""Files that brokers need and that take long to make: made once, and kept in the checkout."""

import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path


__all__ = ["made_once"]

_KEPT = Path(__file__).parents[2] / ".kafka"


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """Return the path of a file or folder that `make`, which is given a path, has made in this checkout.

    One process makes it, and others wait. It appears under its name when it is complete, and not at all if `make`
    fails.
    """
    kept = _KEPT / name
    if kept.exists():
        return kept
    _KEPT.mkdir(exist_ok=True)
    with _locked(_KEPT / f"{name}.lock"):
        if not kept.exists():
            with tempfile.TemporaryDirectory(prefix="making-", dir=_KEPT, ignore_cleanup_errors=True) as scratch:
                made = Path(scratch, name)
                make(made)
                made.rename(kept)
    return kept


@contextmanager
def _locked(path: Path) -> Generator[None]:
    with path.open("w") as file:
        if sys.platform != "win32":
            import fcntl  # noqa: PLC0415 - it does not exist on Windows

            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        yield
