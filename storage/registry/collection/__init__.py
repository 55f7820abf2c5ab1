"""Garbage collection: what is needed, who holds what, and deleting the rest."""
