"""What is asked of Redis: commands, their keys, the scripts they run."""
