"""Command lines that are wrong: one sentence and exit code 2, nothing written and nothing started."""

from __future__ import annotations

import keyword
import math
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bankrun.cli import app
from bankrun.proof import private_bank
from bankrun.runs import session
from bankrun.trials.running import scratch

pytestmark = pytest.mark.long


EXAMPLES = 1_000
BUSY = {"new", "page"}
"""Right words to these write a file, or serve for ever."""
STARTERS = {"open_servers", "open_stage", "become_worker", "private_postgres", "private_valkey"}
Try = Callable[[list[str]], int]


class Started(BaseException):
    """The words were right, and servers would be started now."""


@pytest.fixture
def wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cli_state: Path
) -> Iterator[Try]:
    """Return a function that runs words in this process, up to the servers, and returns how often they were wrong."""

    def start(*_: object, **__: object) -> NoReturn:
        raise Started

    # All are imported before anything is replaced: one that is imported later would keep what it finds there.
    commands = [name + "_" * keyword.iskeyword(name) for name in app.COMMANDS]
    modules = [session, private_bank, scratch, *(import_module(f"bankrun.cli.{name}") for name in commands)]
    for module in modules:
        for starter in STARTERS & vars(module).keys():
            monkeypatch.setattr(module, starter, start)
    monkeypatch.setenv("BANKRUN_STATE_DIR", str(cli_state))
    monkeypatch.chdir(tmp_path)

    def run(words: list[str]) -> int:
        monkeypatch.setattr(sys, "argv", ["bankrun", *words])
        try:
            code = app.run()
        except Started:
            code = app.OK
        out, err = capsys.readouterr()
        assert list(tmp_path.iterdir()) == [], words
        if code == app.OK:
            return 0
        assert (code, out) == (app.CANNOT_START, ""), words
        assert err.startswith("bankrun: "), words
        assert len(err.splitlines()) == 1, (words, err)
        assert len(err) < 2_000, words
        assert "Traceback" not in err
        return 1

    yield run
    assert list(tmp_path.iterdir()) == []


NUMBERS = (
    *("transfers", "accounts", "opening", "amount-max", "think-ms", "chunk", "seed", "repeat", "warmup"),
    "cell-timeout",
)
no_number = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "nan", "-nan", "inf", "-inf", "1e400", "0x10", "1_0", "٣", "1,000", "9" * 5_000, "--", "-", "\x00"]
    ),
    st.integers(max_value=-1).map(str),
    st.integers(min_value=10**16).map(str),
    st.floats().filter(lambda value: not math.isfinite(value) or value != int(value)).map(str),
)
words = st.one_of(
    st.tuples(st.sampled_from(NUMBERS), no_number).map(lambda pair: ["compare", f"--{pair[0]}", pair[1]]),
    st.tuples(st.sampled_from(["topology", "strategy", "skew"]), st.text(max_size=30)).map(
        lambda pair: ["compare", f"--{pair[0]}", pair[1]]
    ),
    st.tuples(st.sampled_from(["export-json", "export-csv", "junitxml"]), st.text(max_size=300)).map(
        lambda pair: ["compare", f"--{pair[0]}", f"no/{pair[1]}"]
    ),
    st.tuples(st.sampled_from(["case", "transfers", "preemptions", "show", "instances"]), no_number).map(
        lambda pair: ["prove", f"--{pair[0]}", pair[1]]
    ),
    st.tuples(st.sampled_from(["rounds", "transfers", "accounts", "chunk", "topology"]), no_number).map(
        lambda pair: ["bench", f"--{pair[0]}", pair[1]]
    ),
    st.tuples(st.sampled_from(["executions", "seconds", "instances", "setup"]), no_number).map(
        lambda pair: ["try", "no.py:f()", f"--{pair[0]}", pair[1]]
    ),
    st.text(max_size=60).map(lambda text: ["replay", text]),
    st.tuples(
        st.sampled_from([name for name in app.COMMANDS if name not in BUSY]),
        st.lists(st.text(max_size=20), min_size=1, max_size=4),
    ).map(lambda pair: [pair[0], *pair[1]]),
    st.lists(st.text(max_size=12), min_size=1, max_size=4),
)


def test_whatever_is_typed_is_right_or_one_sentence_and_exit_code_2(wrong: Try) -> None:
    found = 0

    @settings(max_examples=EXAMPLES * 5 // 4, deadline=None, suppress_health_check=list(HealthCheck))
    @given(words)
    def try_it(typed: list[str]) -> None:
        nonlocal found
        found += wrong(typed)

    try_it()
    assert found >= EXAMPLES
