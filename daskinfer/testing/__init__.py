"""Contract suites that any implementation of a seam must pass."""
