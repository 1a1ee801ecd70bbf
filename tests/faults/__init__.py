"""Faults of the broker, made on real Apache Kafka, and what the library does meanwhile and afterwards."""
