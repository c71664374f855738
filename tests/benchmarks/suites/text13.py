"""Thirteen text tasks, with experts fine-tuned from a small pre-trained encoder.

See `text.py` for how, and which texts are for what.
"""

from functools import partial

from tests.benchmarks import text

PACKS = (
    *("ag_news", "amazon5", "amazon_category24", "banking77", "dbpedia14", "newsgroups20", "sst2"),
    *("trec6", "tweet_emotion", "tweet_irony", "yahoo10_small", "yahoo2", "yelp5"),
)

add_arguments = text.add_arguments
prepare = partial(text.prepare, "text13", {name: name for name in PACKS})
