"""What goes over the wire. No I/O."""
