"""Messages as they must not be: nonsense, and jobs that say what was not accepted."""

from __future__ import annotations

import base64
import json
import random

from workers.app import QUEUE, TASK

_NO_JSON = {
    "body": base64.b64encode(b"{not json").decode(),
    "content-encoding": "utf-8",
    "content-type": "application/json",
    "headers": {"task": TASK, "id": "1"},
    "properties": {
        "body_encoding": "base64",
        "delivery_tag": "1",
        "delivery_info": {"exchange": "", "routing_key": QUEUE},
    },
}
GARBAGE: tuple[bytes, ...] = (
    b"\xff\xfe no text",
    b"{",
    b"[]",
    b"{}",
    b'{"body": "", "headers": {}, "properties": {}}',
    json.dumps(_NO_JSON).encode(),
)
"""What must cost an instance nothing but a line in its log."""
GARBLED = (ValueError, TypeError, KeyError, IndexError)
"""What reading a message raises that an earlier round has changed."""


def poison(message: str, chance: random.Random) -> str:
    """Return a message with something wrong in it."""
    envelope = json.loads(message)
    body = poison_body(base64.b64decode(envelope["body"]), chance)
    if not body:
        return message[: len(message) // 2]
    envelope["body"] = base64.b64encode(body.encode()).decode()
    return json.dumps(envelope)


def poison_body(body: str | bytes, chance: random.Random) -> str:
    """Return what a message says, with something wrong in it; sometimes nothing."""
    arguments, options, embed = json.loads(body)
    job = arguments[0]
    wrong = chance.randrange(5)
    if wrong == 0:
        return ""
    if wrong == 1:
        job["strategy"] = "no-such-lock"
    elif wrong == 2:
        job["orders"][0][3] = "ten"
    elif wrong == 3:
        job["orders"][0][3] += 1  # not what was accepted
    else:
        job["run"] = {"$": 1}
    return json.dumps([arguments, options, embed])
