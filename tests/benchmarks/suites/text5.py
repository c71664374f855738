"""The paper's five text tasks, with experts fine-tuned from a small pre-trained encoder.

See `text.py` for how, and which texts are for what. Of Yahoo's ten topics there are 755 training
texts.
"""

from functools import partial

from tests.benchmarks import text

PACKS = {
    "ag_news": "ag_news",
    "yelp": "yelp5",
    "amazon": "amazon5",
    "yahoo": "yahoo10_small",
    "dbpedia": "dbpedia14",
}
"""The pack of each task."""

add_arguments = text.add_arguments
prepare = partial(text.prepare, "text5", PACKS)
