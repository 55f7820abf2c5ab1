"""One file for each peer. They run in an environment of their own, which has no daskinfer in it."""
