"""A Flower app whose clients add one to each number of a model."""
