"""Faults of a real Apache Kafka broker, and what the library does during and after them."""
