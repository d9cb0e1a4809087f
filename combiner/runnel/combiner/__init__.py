"""The combiner: fans work out to the nodes below and folds what comes back."""
