"""Folders of samples and cached features."""
