"""Rows of jsonl, csv and text files."""
