"""How many models of the zoos the library supports."""
