"""Bugs on purpose: each is planted in a copy of the tree, and the suite has to notice."""
