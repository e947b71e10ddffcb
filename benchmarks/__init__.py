"""Measurements: `make bench ARGS=NAME` runs one. Every figure is a ratio of things measured side by side."""
