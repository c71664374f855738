"""Eight image tasks, with experts fine-tuned from a small Vision Transformer.

See `vision.py` for how base and experts are trained, and which images are for what.
"""

from functools import partial

from tests.benchmarks import vision, vit

PACKS = (
    *("mnist", "fashion_mnist", "gtsrb", "aid"),
    *("scenes15", "sign_digits", "omniglot_alphabet", "cifar10"),
)

add_arguments = vision.add_arguments
prepare = partial(vision.prepare, "vision8", PACKS, vit)
