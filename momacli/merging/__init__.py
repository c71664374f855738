"""A merge that fits: made ready, computed, and written."""
