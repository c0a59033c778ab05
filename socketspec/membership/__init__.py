"""Who is where, on which node."""
