"""Dask itself: connections, local clusters, resource tags, and whatever touches Dask's private parts."""
