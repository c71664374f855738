"""Machine code, made of Python when it is first needed."""
