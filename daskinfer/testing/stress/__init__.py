"""Long randomised tests."""
