"""Rows in: jsonl, csv, text and parquet, cut into partitions."""
