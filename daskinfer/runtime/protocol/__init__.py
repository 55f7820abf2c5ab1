"""What the parts of a run tell each other: events, actions and keys, as frozen values without logic."""
