"""Tensors out of pickles, without importing a module they name or calling what they ask for."""
