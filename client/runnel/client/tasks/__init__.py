"""Container tasks at a site: from an order of the network to its result."""
