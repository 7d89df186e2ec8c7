"""docs/try.md: each command that it shows gives the sentence that it shows, on a real Postgres."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from bankrun.servers.places import Place
from bankrun.trials.trial import ask, open_server, put_on_trial

ROOT = Path(__file__).parents[2]
SHOWN = re.findall(r"^\$ bankrun try (.*)\n(.*)$", (ROOT / "docs" / "try.md").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def server() -> Iterator[Place]:
    with open_server() as place:
        yield place


def test_the_page_shows_eight_patterns() -> None:
    page = (ROOT / "docs" / "try.md").read_text()
    assert re.findall(r"^### (\d)\.", page, re.MULTILINE) == [str(number) for number in range(1, 9)]
    assert len(SHOWN) == 19


@pytest.mark.parametrize(("command", "sentence"), SHOWN, ids=[sentence.partition(":")[0] for _, sentence in SHOWN])
def test_a_command_gives_what_the_page_says(server: Place, command: str, sentence: str) -> None:
    words = shlex.split(command)
    options = dict(zip(words[-4::2], words[-3::2], strict=True))
    folder = ROOT / "examples" / "trials"
    programs = [str(folder / word) for word in words[:-4]]
    question = ask(programs, setup=str(folder / options["--setup"]), instances=options["--instances"])
    found = put_on_trial(question, place=server)
    assert found.sentences == (sentence,), found.story
    assert found.complete
