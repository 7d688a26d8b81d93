"""Many small Ray tasks over the parts of one array, with only as many submitted as keep every worker busy."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pandas as pd
import ray

MIN_PENDING = 8
"""Tasks that wait at least, so that an autoscaler without a node has a reason to start one."""


def run_bounded(submit: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
    """Submit one task per part and yield results in the order they finish."""
    pending: list[Any] = []
    for part in parts:
        if len(pending) >= max(MIN_PENDING, 2 * int(ray.cluster_resources().get("CPU", 0))):
            done, pending = ray.wait(pending, num_returns=1)
            yield ray.get(done[0])
        pending.append(submit(part))
    while pending:
        done, pending = ray.wait(pending, num_returns=1)
        yield ray.get(done[0])


def split_rows(table: pd.DataFrame, size: int) -> Iterator[pd.DataFrame]:
    """Cut a table into parts of at most `size` rows."""
    return (table.iloc[part.start : part.stop] for part in split_range(len(table), size))


def split_range(length: int, size: int) -> Iterator[range]:
    """Cut 0..length into ranges of at most `size`."""
    return (range(start, min(start + size, length)) for start in range(0, length, size))
