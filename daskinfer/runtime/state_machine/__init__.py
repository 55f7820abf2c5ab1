"""What a run decides: from an event to actions, without I/O and without a clock."""
