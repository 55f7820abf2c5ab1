"""Rows out: sinks whose commits happen exactly once."""
