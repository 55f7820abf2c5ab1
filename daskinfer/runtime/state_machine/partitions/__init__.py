"""Which partitions are under way, how many at a time, and whose they are."""
