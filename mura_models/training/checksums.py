"""A checksum of a safetensors file: the SHA-256 of all its bytes, stored in its own header.

The header is JSON, and the checksum a string of fixed length in it. It is computed with zeros in its place, so that a
changed byte is detected wherever it is. Free of torch.
"""

import hashlib
import json
from collections.abc import Mapping

KEY = "sha256"
_LENGTH = 64
_PREFIX = f'"{KEY}":"'.encode()
_ZEROS = b"0" * _LENGTH


def reserve_checksum(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the header's metadata with a place for the checksum."""
    return {**metadata, KEY: _ZEROS.decode()}


def add_checksum(content: bytes) -> bytes:
    """Write the checksum into the place that `reserve_checksum` made. Raises ValueError if there is none."""
    place = _find_place(content)
    if place is None:
        raise ValueError("no place for a checksum in the header")
    zeroed = content[:place] + _ZEROS + content[place + _LENGTH :]
    return content[:place] + hashlib.sha256(zeroed).hexdigest().encode() + content[place + _LENGTH :]


def has_valid_checksum(content: bytes) -> bool:
    """Return whether these are all the bytes that `add_checksum` returned."""
    place = _find_place(content)
    if place is None:
        return False
    digest = hashlib.sha256(content[:place])
    digest.update(_ZEROS)
    digest.update(memoryview(content)[place + _LENGTH :])
    return digest.hexdigest().encode() == content[place : place + _LENGTH]


def _find_place(content: bytes) -> int | None:
    """Return where the checksum begins: the value of its key in the header's `__metadata__`."""
    length = int.from_bytes(content[:8], "little")
    if not 2 <= length <= len(content) - 8:
        return None
    head = content[8 : 8 + length]
    try:
        text = json.loads(head)["__metadata__"][KEY]
    except (ValueError, KeyError, TypeError):
        return None
    place = head.find(_PREFIX + str(text).encode())
    return None if place < 0 or len(text) != _LENGTH else 8 + place + len(_PREFIX)
