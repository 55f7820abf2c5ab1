"""A job as records."""
