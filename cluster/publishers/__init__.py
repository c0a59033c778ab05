"""Publishers: send, count and disconnect from code that is no node, with or without an event loop."""
