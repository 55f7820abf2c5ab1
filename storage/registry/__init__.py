"""The registry: checkpoints at rest as immutable snapshots, and everything that is decided about them."""
