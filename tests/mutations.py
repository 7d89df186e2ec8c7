"""Bytes that are nearly right: real ones of which something was changed, as an enemy or an accident would."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from itertools import pairwise

LARGE = "SOUNDNESS" in os.environ
"""Whether as many inputs are made as `make soundness` wants."""
SPAN_MAX = 64
INTERESTING = (
    *(b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\3", b"\0\0\0\4", b"\0\0\0\5"),
    *(b"\x03\xff\xff\xff", b"\xff\xff", b"\x7f\xff", b"\0", b"9" * 5_000, b"1e999", b"-1", b"null", b"[" * 3_000),
    *(b'"', b"\\ud800", b"{", b"}", b"\xed\xa0\x80", b"true", b'{"a":' * 500),
)
"""What decoders fall over: lengths, numbers and text at the edge of what they can be."""


def mutate(data: bytes, chosen: random.Random, others: Sequence[bytes]) -> bytes:
    """Return the bytes with one to four changes; ``others`` give what is spliced in."""
    for _ in range(chosen.randint(1, 4)):
        data = _change(data, chosen, others)
    return data


def _change(data: bytes, chosen: random.Random, others: Sequence[bytes]) -> bytes:
    at = chosen.randint(0, len(data))
    end = min(len(data), at + chosen.randint(0, SPAN_MAX))
    match chosen.randrange(8):
        case 0:
            return data[:at] + chosen.randbytes(1) + data[at + 1 :]
        case 1:
            return data[:at] + data[end:]
        case 2:
            return data[:at] + chosen.randbytes(end - at) + data[at:]
        case 3:
            return data[:at] + data[at:end] * chosen.randint(2, 50) + data[end:]
        case 4:
            word = chosen.choice(INTERESTING)
            return data[:at] + word + data[at + len(word) :]
        case 5:
            return data[:at] + chosen.choice(INTERESTING) + data[at:]
        case 6:
            other = chosen.choice(others)
            return data[:at] + other[chosen.randint(0, len(other)) :]
        case _:
            return data[:at]


def cut(data: bytes, chosen: random.Random) -> list[bytes]:
    """Return the bytes in pieces, cut at any places."""
    places = sorted({0, len(data), *(chosen.randint(0, len(data)) for _ in range(chosen.randint(0, 4)))})
    return [data[begin:end] for begin, end in pairwise(places)]
