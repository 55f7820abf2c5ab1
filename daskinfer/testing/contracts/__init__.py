"""What any implementation must do: subclass a contract and pytest runs it."""
