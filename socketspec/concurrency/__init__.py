"""Tasks with an owner, deadlines on one wheel."""
