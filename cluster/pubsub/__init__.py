"""What this node hears from Redis."""
