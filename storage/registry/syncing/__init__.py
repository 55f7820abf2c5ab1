"""Bringing one registry up to another."""
