"""The eight image tasks of vision8, with a small CLIP whose heads are embeddings of text.

See `clip.py` for how base, heads and experts are made, and `vision.py` for which images are for
what.
"""

from functools import partial

from tests.benchmarks import clip, vision
from tests.benchmarks.suites.vision8 import PACKS

add_arguments = vision.add_arguments
prepare = partial(vision.prepare, "clip8", PACKS, clip)
