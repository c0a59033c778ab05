"""From a publication to its members on this node."""
