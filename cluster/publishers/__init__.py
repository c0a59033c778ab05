"""For code that is no node: publish, count and disconnect from anywhere."""
