"""Faults drawn from a seed, on three brokers and a group of worker processes, and an oracle that looks at it all."""
