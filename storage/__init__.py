"""All bytes at rest: checkpoints, locks, inputs, activations, outputs, job records."""

if __name__ != "daskinfer.storage":
    raise ImportError("import daskinfer.storage: the folder storage/ is a part of daskinfer, not a package of its own")
