"""Which snapshot a job computes on, and how it changes to another."""
