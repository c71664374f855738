"""Twelve image tasks: those of vision8, and what only pre-training saw there.

See `vision.py` for how base and experts are trained, and which images are for what.
"""

from functools import partial

from tests.benchmarks import vision, vit
from tests.benchmarks.suites.vision8 import PACKS as EIGHT

PACKS = (*EIGHT, "digits8", "dtd10", "flowers5", "pneumonia_mnist")

add_arguments = vision.add_arguments
prepare = partial(vision.prepare, "vision12", PACKS, vit)
