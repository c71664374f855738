"""Compute fine-tuned features for alignments to come, of single tasks, anywhere."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from momacli.data.reading import Reading, Views
from momacli.progress import Listener, ignore

if TYPE_CHECKING:
    from momacli.data.features import CacheType, CacheUse
    from momacli.data.folders import Data


@dataclass(frozen=True)
class PrepareReport:
    """Which features are kept now."""

    samples: dict[str, int]  # by task
    cache: "CacheUse"
    device: str
    seconds: float


def prepare(
    merged: str | Path | None = None,
    *,
    data: "Data",
    tasks: Sequence[str] | None = None,
    reading: Reading | None = None,
    views: Views = "auto",
    device: str = "auto",
    base: str | Path | None = None,
    config: str | Path | None = None,
    pooling: str | None = None,
    features: str | None = None,
    cache: str | Path | None = None,
    cache_dtype: "CacheType" = "float32",
    listener: Listener = ignore,
) -> PrepareReport:
    """Compute and keep what the experts of these tasks make of their samples, and no more.

    `align` finds it in the same cache, called with the same samples: their names, sizes and
    times count. Of other tasks neither experts nor samples are needed; so tasks can be prepared
    by several processes or machines that share the cache's folder, or are brought together there.

    tasks: all by default.
    views: of each image; by default as many as `align` takes.

    All else is as for `align`. Raises MomaErrors before any work where inputs do not fit.
    """
    from momacli.alignment.inputs import default_input, open_sources
    from momacli.alignment.samples import open_network, prepare_tasks
    from momacli.data.features import FeatureCache, default_cache
    from momacli.merging.ranks import Ranks

    started = time.monotonic()
    with ExitStack() as stack:
        sources = open_sources(
            stack,
            Path(merged) if merged is not None else default_input("align"),
            data,
            device=device,
            base=base,
            config=Path(config) if config else None,
            pooling=pooling,
            features=features,
            listener=listener,
            tasks=tasks,
        )
        folder = Path(cache) if cache else default_cache()
        leads = Ranks.apart().number == 0
        kept = FeatureCache(folder, dtype=cache_dtype, writes=leads, listener=listener)
        network = open_network(sources)
        ranks = Ranks.here()
        read = replace(reading or Reading(), views=views)
        prepared = prepare_tasks(sources, network, read, kept, ranks)
        samples = {one.task: one.count // one.views for one in prepared}
        seconds = time.monotonic() - started
        return PrepareReport(samples, kept.use(), str(sources.device), seconds)
