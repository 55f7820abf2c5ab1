"""Looks at the scheduler and the workers, and tells of what it sees; decides nothing."""
