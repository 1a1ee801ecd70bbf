"""CPU per record without a network: FastStream alone, the lower bound of this design ("floor"), and the library."""
