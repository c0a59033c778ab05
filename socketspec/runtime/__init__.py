"""One app at work."""
