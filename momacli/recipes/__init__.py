"""Merges written down: recipe.toml and mergekit's YAML, read into one description of steps."""
