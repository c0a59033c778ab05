"""What goes over the wire, to clients and between nodes. No I/O."""
