"""Many small Ray tasks over the parts of one array: no more under way than keeps every worker busy."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pandas as pd
import ray

IMAGES_PER_TASK = 64
MIN_UNDER_WAY = 8
"""Tasks waiting at least, so that an autoscaler with no node yet has something to start one for."""


def run_bounded(submit: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
    """Submit a task a part and yield results as they come, with no more under way than keeps every worker busy."""
    under_way: list[Any] = []
    for part in parts:
        if len(under_way) >= max(MIN_UNDER_WAY, 2 * int(ray.cluster_resources().get("CPU", 0))):
            done, under_way = ray.wait(under_way, num_returns=1)
            yield ray.get(done[0])
        under_way.append(submit(part))
    while under_way:
        done, under_way = ray.wait(under_way, num_returns=1)
        yield ray.get(done[0])


def split_rows(table: pd.DataFrame, size: int) -> Iterator[pd.DataFrame]:
    """Cut a table into parts of at most `size` rows."""
    return (table.iloc[part.start : part.stop] for part in split_range(len(table), size))


def split_range(length: int, size: int) -> Iterator[range]:
    """Cut 0..length into ranges of at most `size`."""
    return (range(start, min(start + size, length)) for start in range(0, length, size))
