"""The product on one machine: embedded servers, seeds, traffic, and the run that ties them together."""
