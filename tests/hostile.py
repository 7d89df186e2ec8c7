"""Messages as an enemy, or an accident, would put them into the broker."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from workers.app import NOOP_TASK, TASK

NOTHING_AFTER = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
ABSENT = object()

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**30), max_value=10**30)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["__type__", "bankrun.apply", "9999-12-31T23:59:59+00:00", "\x00", "\ud800", "x\ny", "a" * 5000]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def job() -> dict[str, Any]:
    """Return a job that is well-formed, and was never accepted."""
    return {
        "run": "hostile",
        "strategy": "row-lock",
        "orders": [[str(uuid4()), 1, 2, 10]],
        "think_ms": 0.0,
        "threads": None,
        "again": False,
    }


def encoded(body: object) -> str:
    """Return a body as it travels."""
    return base64.b64encode(json.dumps(body).encode()).decode()


def envelope(argument: object = None) -> dict[str, Any]:
    """Return what Celery's own producer puts into Redis."""
    number = str(uuid4())
    return {
        "body": encoded([[job() if argument is None else argument], {}, NOTHING_AFTER]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": TASK,
            "id": number,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": number,
            "parent_id": None,
            "argsrepr": "()",
            "kwargsrepr": "{}",
            "origin": "gen1@host",
            "ignore_result": None,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        },
        "properties": {
            "correlation_id": number,
            "reply_to": str(uuid4()),
            "delivery_mode": 2,
            "priority": 0,
            "delivery_info": {"exchange": "", "routing_key": "transfers"},
            "body_encoding": "base64",
            "delivery_tag": str(uuid4()),
        },
    }


def changed(part: str, value: object = ABSENT, *, within: str | None = None) -> dict[str, Any]:
    """Return an envelope in which one part has another value, or is missing."""
    whole = envelope()
    inner = whole if within is None else whole[within]
    if value is ABSENT:
        del inner[part]
    else:
        inner[part] = value
    return whole


@st.composite
def envelopes(draw: st.DrawFn) -> Any:
    """An envelope with one part replaced or missing, or with another argument; or no envelope at all."""
    whole = envelope()
    within = draw(st.sampled_from(["", "headers", "properties", "job", "body", "none"]))
    if within == "none":
        return draw(json_values)
    if within == "body":
        whole["body"] = encoded(draw(json_values))
        return whole
    if within == "job":
        argument = job()
        argument[draw(st.sampled_from(sorted(argument)))] = draw(json_values)
        whole["body"] = encoded([[argument], {}, NOTHING_AFTER])
        return whole
    inner = whole[within] if within else whole
    name = draw(st.sampled_from(sorted(inner)))
    if draw(st.booleans()):
        inner[name] = draw(json_values)
    else:
        del inner[name]
    return whole


payloads = st.binary(max_size=60) | envelopes().map(lambda whole: json.dumps(whole).encode())


def drawn(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """Return so many examples, the same each time."""
    found: list[Any] = []

    @settings(
        max_examples=count,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


def known(order_id: UUID) -> Iterator[bytes]:
    """Yield what is known to be dangerous; some of it is about the accepted transfer ``order_id``."""
    yield from (
        b"\xff\xfe\x00",
        b"hello",
        b"",
        b"[]",
        b"null",
        b"1e999",
        b"[" * 100_000,
        b"9" * 5_000,
        b'{"a":' * 20_000,
    )
    yield from (b'{"__type__": ["x"], "__value__": 1}', b'{"__type__": "decimal", "__value__": "x"}')
    wholes = [
        *(changed(part) for part in envelope()),
        *(changed(part, [1]) for part in envelope()),
        *(changed("body", body) for body in ("%%%%", "e30", "a" * 5_000_000, encoded([[], {}, {}]), encoded([1, 2]))),
        *(changed("body", encoded(body)) for body in ([[1], {"x": 1}, NOTHING_AFTER], [[1, 2], {}, NOTHING_AFTER], 5)),
        *(changed("content-type", kind) for kind in ("application/x-python-serialize", "application/x-yaml", "x/y")),
        *(changed("task", name, within="headers") for name in ("os.system", "celery.map", "celery.chord", ["x"], None)),
        *(changed("eta", when, within="headers") for when in ("9999-12-31T23:59:59+00:00", "tomorrow", 5, [])),
        *(changed("expires", when, within="headers") for when in ("1999-01-01T00:00:00+00:00", "9" * 99, -1)),
        *(changed("retries", number, within="headers") for number in ("many", -1, 10**30, None)),
        *(changed("id", name, within="headers") for name in (["x"], None, "x\ny", "", {})),
        *(changed("delivery_tag", tag, within="properties") for tag in ({"a": 1}, None, "x y", 5)),
        *(changed("delivery_info", info, within="properties") for info in (None, [], "x")),
        changed("body", encoded([[job()], {}, {**NOTHING_AFTER, "chain": [{"task": NOOP_TASK, "args": [1]}]}])),
        changed("body", encoded([[job()], {}, {**NOTHING_AFTER, "errbacks": [{"task": TASK, "args": [1]}]}])),
        changed("body", encoded([["x"], {}, NOTHING_AFTER]), within=None),
        {**changed("task", NOOP_TASK, within="headers"), "body": encoded([["x"], {}, NOTHING_AFTER])},
        # The accepted transfer, but not as it was accepted; and in vain, time and again.
        envelope({**job(), "orders": [[str(order_id), 2, 1, 10]]}),
        *(envelope({**job(), "orders": [[str(order_id), 1, 2, 999]], "again": True}) for _ in range(12)),
        envelope({**job(), "orders": [[str(order_id), 1, 2, 10]], "strategy": "no-such-strategy"}),
    ]
    yield from (json.dumps(whole).encode() for whole in wholes)
