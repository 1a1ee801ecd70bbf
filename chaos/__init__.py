"""Random faults on three brokers and a group of worker processes, and an oracle that judges the result."""
