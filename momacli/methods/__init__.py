"""Merge methods: stacked task vectors of one tensor in, its multi-task vector out.

One file is one method: `methods/<name>.py` holds a function `<name>`. Files beginning with
an underscore are shared code. Nothing here is imported to list the methods.
"""
