"""What is kept in Redis: histories, limits, sessions. Presence has a folder of its own."""
