"""A model against itself and against plain transformers, before anything is trusted to it."""
