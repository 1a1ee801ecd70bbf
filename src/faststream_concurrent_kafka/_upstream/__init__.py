"""The only package that touches what FastStream, aiokafka, anyio and asyncio keep private, or patches their objects."""
