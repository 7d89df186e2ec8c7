"""Text from outside, as it may be shown: the one place for a terminal, and the one for HTML, SVG and XML.

A file, a name, a message of a database or of a user's program may hold escape sequences that move a cursor, letters
that turn the direction of what follows, or halves of characters that no encoding takes. Each is shown as one sign.
"""

from __future__ import annotations

import re

UNSEEN = "?"
NOT_IN_MARKUP = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""What XML forbids (1.0, section 2.2), the controls that HTML forbids besides, and what turns the direction of text."""


def printable(text: str) -> str:
    """Return text as a terminal may have it: printable, with its line breaks and tabs."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() or character in "\n\t" else UNSEEN for character in text)


def one_line(text: str, length_max: int) -> str:
    """Return text as a sentence can hold it, wherever it came from: printable, in one line, and bounded."""
    line = "".join(character if character.isprintable() else UNSEEN for character in text)
    return line if len(line) <= length_max else line[: length_max - 1] + "…"


def legal(markup: str) -> str:
    """Return a document of HTML, SVG or XML without the characters that none may hold. It stays as long as it was."""
    return NOT_IN_MARKUP.sub("\ufffd", markup)
