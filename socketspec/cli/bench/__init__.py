"""What ``socketspec bench`` is made of: a load generator, its measurement, and the report."""
