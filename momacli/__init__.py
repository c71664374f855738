"""Merge fine-tuned models into one and realign it to every task from unlabeled data."""

__version__ = "0.1.0"
