"""Tasks with an owner, deadlines on one wheel, and what an event loop takes with it."""
