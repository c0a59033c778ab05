"""From a client's message to its answer."""
