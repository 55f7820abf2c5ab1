"""Plan and partitions to Dask task graphs, and the functions that run as tasks."""

if __name__ != "daskinfer.graphs":
    raise ImportError("import daskinfer.graphs: the folder graphs/ is a part of daskinfer, not a package of its own")
