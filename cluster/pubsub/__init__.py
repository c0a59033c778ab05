"""What this node hears from Redis: channels, the connections that carry them, and proof that they do."""
