"""A model as a row of layers, and a stage of it."""
