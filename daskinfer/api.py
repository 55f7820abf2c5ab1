"""plan, run, resume, inspect: the one place that wires the floors together."""
