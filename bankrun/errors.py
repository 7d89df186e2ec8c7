"""The errors of those rooms that know no bank: the embedded servers, results as files, the engine, trials.

``bank.errors`` has the bank's own. The command line treats both alike: ``CannotStart`` is exit code 2, every other
error exit code 1.
"""

from __future__ import annotations


class BankrunError(Exception):
    """Something failed while it ran; the message is one sentence."""


class CannotStart(BankrunError):
    """Nothing was started: wrong usage, or a server or a file that will not do."""


def one_line(text: str, length_max: int) -> str:
    """Return text as a sentence can hold it, wherever it came from: printable, in one line, and bounded."""
    line = "".join(character if character.isprintable() else "?" for character in text)
    return line if len(line) <= length_max else line[: length_max - 1] + "…"
