"""Fixtures that tests of several folders share."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Run torch in one thread: on tensors this small, more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
