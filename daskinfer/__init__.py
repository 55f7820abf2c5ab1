"""Batch inference on Dask, for models of any size over data of any size."""
