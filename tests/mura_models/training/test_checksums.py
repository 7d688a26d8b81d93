"""The seal over a checkpoint: any changed byte shows, and what is sealed is still a safetensors file."""

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from mura_models.training.checksums import add_checksum, has_valid_checksum, reserve_checksum

TENSORS = {"w": torch.arange(6, dtype=torch.float32), "sha256": torch.ones(2)}
TRICKY = {"progress": '{"sha256":"' + "0" * 64 + '"}', "head": 'é\n"sha256":"x'}


@pytest.fixture
def sealed():
    return add_checksum(save(TENSORS, reserve_checksum(TRICKY)))


def test_what_is_sealed_is_known_and_read_as_before(sealed):
    assert has_valid_checksum(sealed)
    assert add_checksum(sealed) == sealed
    assert all(np.array_equal(tensor, TENSORS[name]) for name, tensor in load(sealed).items())


def test_every_changed_byte_shows(sealed):
    for place in range(len(sealed)):
        for bit in (0, 3, 7):
            damaged = bytearray(sealed)
            damaged[place] ^= 1 << bit
            assert not has_valid_checksum(bytes(damaged)), place


def test_every_length_but_its_own_shows(sealed):
    assert not any(has_valid_checksum(sealed[:length]) for length in range(len(sealed)))
    assert not has_valid_checksum(sealed + b"\0")


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"\xff" * 100, save(TENSORS), save(TENSORS, reserve_checksum({}))])
def test_what_was_never_sealed_is_not(content):
    assert not has_valid_checksum(content)


def test_there_must_be_room_for_a_seal():
    with pytest.raises(ValueError, match="no room"):
        add_checksum(save(TENSORS))
