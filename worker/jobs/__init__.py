"""Periodic jobs: which run of which job belongs to whom."""
