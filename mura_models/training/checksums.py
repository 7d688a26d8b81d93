"""A seal over a safetensors file: the SHA-256 of all of its bytes, in its own head.

The head is JSON, and the seal a text of fixed length in it. It is taken with zeros in its own place, so that a changed
byte shows wherever it is. Nothing here needs torch.
"""

import hashlib
import json
from collections.abc import Mapping

KEY = "sha256"
_LENGTH = 64
_PREFIX = f'"{KEY}":"'.encode()
_OPEN = b"0" * _LENGTH


def leave_room(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the head's texts with a place for the seal."""
    return {**metadata, KEY: _OPEN.decode()}


def add_checksum(content: bytes) -> bytes:
    """Put the seal into the place that `leave_room` left. Raises ValueError where there is none."""
    place = _find_place(content)
    if place is None:
        raise ValueError("no room for a seal in the head")
    opened = content[:place] + _OPEN + content[place + _LENGTH :]
    return content[:place] + hashlib.sha256(opened).hexdigest().encode() + content[place + _LENGTH :]


def has_valid_checksum(content: bytes) -> bool:
    """Return whether these are the bytes that were sealed, all of them."""
    place = _find_place(content)
    if place is None:
        return False
    digest = hashlib.sha256(content[:place])
    digest.update(_OPEN)
    digest.update(memoryview(content)[place + _LENGTH :])
    return digest.hexdigest().encode() == content[place : place + _LENGTH]


def _find_place(content: bytes) -> int | None:
    """Return where the seal begins: the value of its key in the head's `__metadata__`."""
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
