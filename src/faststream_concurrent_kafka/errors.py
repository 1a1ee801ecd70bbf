"""The errors of the library, each of which names the side at fault; and functions that return safe texts of errors."""

from collections.abc import Callable


class ConcurrentKafkaError(Exception):
    """Root of every error that this library raises."""


class SettingsError(ConcurrentKafkaError, ValueError):
    """A setting has a value that is not allowed: a mistake in the application's configuration."""


class SetupError(ConcurrentKafkaError, RuntimeError):
    """The library is used in a way that cannot work: a mistake in the application's wiring."""


class CommitterIsDeadError(ConcurrentKafkaError, RuntimeError):
    """The committer's main task has died of an error that no broker can cause: a fault of this library.

    Nothing more is committed by this process, so it takes no further records; the health check is red, and after a
    restart everything that was not committed is delivered again.
    """


def brief(error: BaseException, most: int = 200) -> str:
    """Return the type and text of any exception, on one line of at most `most` characters: it may hold a record."""
    return escaped(f"{name_of(error)}: {text_of(error)}", most)


def name_of(error: BaseException, *, qualified: bool = False) -> str:
    """Return the name of an exception's type, with its module if `qualified`."""
    kind = type(error)
    return _read(lambda: f"{kind.__module__}.{kind.__qualname__}" if qualified else f"{kind.__name__}")


def text_of(error: object) -> str:
    """Return the text of an exception (or another object of the user's), also if its `__str__` raises."""
    return _read(lambda: f"{error}")


def escaped(text: str, most: int) -> str:
    """Escape unprintable characters of a text (line ends, NUL, lone surrogates), and cut it to `most` characters.

    A log line with the result stays one line, and can be encoded.
    """
    text = "".join(map(_escaped, text[: most + 1]))
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _read(read: Callable[[], str]) -> str:
    try:
        return read()
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - the object is the user's, and so is what it raises
        return "(can't be read)"


class HandlerTimeoutError(ConcurrentKafkaError):
    """A handler was cancelled because it took longer than `handler_timeout_sec`: a failure of its record.

    It is not a `TimeoutError`, so that it is not taken for one that the handler itself has raised.
    """
