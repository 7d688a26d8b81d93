"""The checksum in a checkpoint: any changed byte is detected, and the file is still a safetensors file."""

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from mura_models.training.checksums import add_checksum, has_valid_checksum, reserve_checksum

TENSORS = {"w": torch.arange(6, dtype=torch.float32), "sha256": torch.ones(2)}
TRICKY = {"progress": '{"sha256":"' + "0" * 64 + '"}', "head": 'é\n"sha256":"x'}


@pytest.fixture
def checked():
    return add_checksum(save(TENSORS, reserve_checksum(TRICKY)))


def test_a_checksum_is_valid_and_the_file_reads_as_before(checked):
    assert has_valid_checksum(checked)
    assert add_checksum(checked) == checked
    assert all(np.array_equal(tensor, TENSORS[name]) for name, tensor in load(checked).items())


def test_every_changed_byte_is_detected(checked):
    for place in range(len(checked)):
        for bit in (0, 3, 7):
            damaged = bytearray(checked)
            damaged[place] ^= 1 << bit
            assert not has_valid_checksum(bytes(damaged)), place


def test_every_other_length_is_detected(checked):
    assert not any(has_valid_checksum(checked[:length]) for length in range(len(checked)))
    assert not has_valid_checksum(checked + b"\0")


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"\xff" * 100, save(TENSORS), save(TENSORS, reserve_checksum({}))])
def test_content_without_a_checksum_is_not_valid(content):
    assert not has_valid_checksum(content)


def test_there_must_be_a_place_for_the_checksum():
    with pytest.raises(ValueError, match="no place for a checksum"):
        add_checksum(save(TENSORS))
