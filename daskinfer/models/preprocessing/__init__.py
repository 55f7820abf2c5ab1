"""Rows to model inputs."""
