"""What a registry holds and what was done to it, as records."""
