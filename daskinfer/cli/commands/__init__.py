"""The commands about jobs, recipes and stores."""
