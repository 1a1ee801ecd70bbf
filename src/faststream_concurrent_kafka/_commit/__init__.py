"""Committing the offsets of one consumer."""
