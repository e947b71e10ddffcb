"""What an event costs: the price of its time, from our own overrides or the catalog, exact to 12 places."""
