"""The drain's decisions against servers that lie, lose and crash: `python -m tests.simulation --seed S`."""
