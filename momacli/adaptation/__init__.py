"""Merges whose coefficients or masks are learned by lowering the entropy of answers."""
