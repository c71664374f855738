"""What the tiny models of the tests are called."""

from collections.abc import Mapping

CLASSES: Mapping[str, tuple[str, ...]] = {
    "birds": ("gull", "owl"),
    "cats": ("lion", "lynx", "puma"),
    "dogs": ("collie", "husky", "mastiff", "poodle", "whippet"),
}
"""The tasks of the tiny models, and the classes of each."""
