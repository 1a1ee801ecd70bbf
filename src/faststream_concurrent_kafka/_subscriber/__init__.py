"""One FastStream subscriber whose records are handled concurrently."""
