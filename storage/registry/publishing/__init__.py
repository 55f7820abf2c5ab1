"""Publishing a checkpoint: blobs first, then one record that makes it exist."""
