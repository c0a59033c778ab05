"""Which servers there are, and connections to each."""
