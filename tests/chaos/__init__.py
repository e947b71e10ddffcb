"""The chaos suite: real processes, seeded faults, and books that have to agree at the end."""
