"""What is kept in Redis: histories, limits, sessions."""
