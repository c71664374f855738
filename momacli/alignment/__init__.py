"""Merges learned from unlabeled data."""
