"""Columns: types, values, and what formats can hold."""
