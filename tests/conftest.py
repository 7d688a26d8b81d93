"""Fixtures that tests of several folders share."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Keep torch to one thread: on sizes like these, threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
