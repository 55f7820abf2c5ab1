"""What is done about workers that fail, rows that break them, and tasks that take too long."""
