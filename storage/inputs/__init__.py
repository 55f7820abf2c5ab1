"""Rows in: lines of text, parquet, images and Zarr, cut into partitions."""
