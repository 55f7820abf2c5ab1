"""The recipe: what a user writes, and every mistake in it explained."""
