"""Bytes behind URLs, and what is built on creating an object only once."""
