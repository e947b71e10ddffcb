"""Hourly sums per user, feature, provider and model, kept in the transaction that stores the events."""
