"""Bytes on disk and named tensors."""
