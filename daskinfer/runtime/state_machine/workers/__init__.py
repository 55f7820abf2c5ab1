"""Which worker holds which stage."""
