"""The main job on real input: a shop's orders, charged one at a time, then many at once, then stopped in mid-flight.

    uv run just demo            (or: python -m examples.demo --help)

Everything runs on this machine: an embedded broker, the service as a process of its own (`service.py`), and beside
Kafka a journal of what it did (`ledger.py`), which is checked in the end.
"""
