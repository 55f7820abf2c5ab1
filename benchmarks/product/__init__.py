"""What daskinfer alone costs: memory, overhead, loading, resuming, encryption."""
