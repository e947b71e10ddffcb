"""The tables as Python classes: one declarative base per database, and row-level security as data."""
