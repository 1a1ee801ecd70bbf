"""Shared by tests, chaos, benchmarks and examples: brokers, a load, one worker program, its journal and the oracle."""
