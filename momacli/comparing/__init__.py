"""Several methods on the same inputs: what is compared, what came of it, and its table."""
