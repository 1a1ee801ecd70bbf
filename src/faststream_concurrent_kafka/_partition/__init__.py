"""What is known of one partition. Pure: no asyncio, no clock, no logging, no Kafka types."""
