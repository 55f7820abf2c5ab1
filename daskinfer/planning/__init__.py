"""Pure functions from a recipe, a model's layers and a cluster's shape to a plan."""
