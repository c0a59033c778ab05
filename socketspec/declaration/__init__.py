"""What an app declares, read at start-up."""
