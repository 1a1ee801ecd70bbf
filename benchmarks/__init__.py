"""Measures this library beside FastStream alone: `python -m benchmarks`."""
