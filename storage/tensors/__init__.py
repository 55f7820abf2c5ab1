"""Weights as bytes: reading exactly what is wanted, verified."""
