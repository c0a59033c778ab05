"""A connection from its handshake to its end."""
