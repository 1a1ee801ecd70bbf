"""The event loop and the process: contexts, turns, lag, stacks, signals."""
