"""CPU per record without a network: FastStream alone, the floor of this design, and the library."""
