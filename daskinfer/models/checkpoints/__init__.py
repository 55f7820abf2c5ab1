"""Checkpoints as people have them: read, checked, and cut into layer groups."""
