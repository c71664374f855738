"""Sums taken in one pass, from which the rest follows."""
