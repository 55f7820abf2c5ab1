"""Snapshots of a job: locks, generations, outlines, publishing and profiles."""
