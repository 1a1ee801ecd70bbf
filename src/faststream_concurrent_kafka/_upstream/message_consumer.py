"""What `message.consumer` is while records are handled concurrently."""

from typing import Any

from aiokafka import AIOKafkaConsumer


class MessageConsumer:
    """Reads like the consumer, and neither commits nor seeks.

    A bare `commit` would commit the current position, past records that are still being handled, and a `seek` would
    make other records run twice. The outcome of `ack`, `nack` and `reject` is read off the message instead.
    """

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    async def commit(self, *_args: Any, **_kwargs: Any) -> None:
        """Do nothing: the library commits."""

    def seek(self, *_args: Any, **_kwargs: Any) -> None:
        """Do nothing: a record that was not acknowledged is handled again by itself."""
