"""A stage on its device: weights, transfers, microbatches."""
