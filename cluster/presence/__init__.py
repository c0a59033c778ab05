"""Who is in a room, on whichever node."""
