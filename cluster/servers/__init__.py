"""Which servers there are, and a connection to each."""
