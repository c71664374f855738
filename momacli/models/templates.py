"""Sentences that zero-shot classifiers of CLIP are made from, by data set.

Those the task arithmetic literature uses for its eight data sets (Radford et al. 2021).
"""

from collections.abc import Mapping

DEFAULT = ("a photo of a {}.",)

_OVERHEAD = ("satellite imagery", "aerial imagery", "satellite photo", "aerial photo")
_VIEWS = (*_OVERHEAD, "satellite view", "aerial view")
_ASPECTS = ("texture", "pattern", "thing", "object")

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "cars": (
        "a photo of a {}.",
        "a photo of the {}.",
        "a photo of my {}.",
        "i love my {}!",
        "a photo of my dirty {}.",
        "a photo of my clean {}.",
        "a photo of my new {}.",
        "a photo of my old {}.",
    ),
    "dtd": tuple(
        f"a photo of {word} {{}} {aspect}." for word in ("a", "the") for aspect in _ASPECTS
    ),
    "eurosat": tuple(f"a centered satellite photo of {word}{{}}." for word in ("", "a ", "the ")),
    "gtsrb": tuple(
        f'a {kind} photo of a "{{}}" traffic sign.'
        for kind in ("zoomed in", "centered", "close up")
    ),
    "mnist": ('a photo of the number: "{}".',),
    "resisc45": tuple(f"{view} of {word}{{}}." for word in ("", "a ", "the ") for view in _VIEWS),
    "sun397": ("a photo of a {}.", "a photo of the {}."),
    "svhn": ('a photo of the number: "{}".',),
}
"""`{}` stands for the name of a class."""
