"""A local cluster that waits in the background: the process that keeps it, and what runs and commands ask of it."""
