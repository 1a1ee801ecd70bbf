"""A record in flight: its order, its slot, its attempts, its end."""
