"""What ``socketspec check`` knows: what an app registers, what looks wrong, and how both are shown."""
