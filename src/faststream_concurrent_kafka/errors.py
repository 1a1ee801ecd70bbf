"""The errors of the library: one root, and each says whose fault it is."""


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
    """Return the type and text of any exception, cut to `most` characters; its text may hold a whole record."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - the exception is the user's
        text = f"{type(error).__name__} (its text can't be read)"
    return text if len(text) <= most else f"{text[: most - 3]}..."


class HandlerTimeoutError(ConcurrentKafkaError):
    """A handler was cancelled because it took longer than `handler_timeout_sec`: a failure of its record.

    No `TimeoutError`, so that it is not taken for one that the handler itself has raised.
    """
