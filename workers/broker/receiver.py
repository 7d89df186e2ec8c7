"""How a worker takes messages: as many as it has room for in one round trip, each noted as it is taken.

Kombu takes a message with BRPOP, notes it as unacknowledged in a second round trip, and forgets it in a third, once it
is acknowledged. Whoever dies after the first has lost the message. Here a script on the server does all three, for
several messages at once, and nothing of it can stand between two of its commands.

A script cannot wait for a message. While there is none, BLMOVE does, from the queue's end to the same end: it moves
nothing, and it is answered when there is something to move, whoever put it there. It waits for one queue, so each has a
connection of its own for this.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable
from hashlib import sha1
from time import monotonic
from typing import Any, NamedTuple, Protocol

from redis.exceptions import NoScriptError, RedisError, ResponseError

SCRIPT = """
local index, unacked = KEYS[1], KEYS[2]
local room, ahead, long = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local prefix, number, done = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])

-- With none to forget, ask: a key of another type ends this before anything is taken.
if done > 0 then
    redis.call('ZREM', index, unpack(ARGV, 7, 6 + done))
    redis.call('HDEL', unacked, unpack(ARGV, 7, 6 + done))
else
    redis.call('ZCARD', index)
    redis.call('HLEN', unacked)
end

local time = redis.call('TIME')
local now = time[1] .. string.format('.%06d', time[2])
local taken, scores, noted = {}, {}, {}

local function take(queue, count)
    local messages = count > 0 and redis.pcall('RPOP', KEYS[queue], count)
    if not messages or messages.err then return 0 end
    for _, message in ipairs(messages) do
        local tag = prefix .. number
        number = number + 1
        taken[#taken + 1] = queue - 3
        taken[#taken + 1] = message
        scores[#scores + 1] = now
        scores[#scores + 1] = tag
        noted[#noted + 1] = tag
        noted[#noted + 1] = '[' .. message .. ARGV[4 + done + queue]
    end
    return #messages
end

-- Each queue in its turn gives its share of the room that is left; those that gave all of it are asked again.
local queues = {}
for queue = 3, #KEYS do queues[queue - 2] = queue end
while room > 0 and #queues > 0 do
    local again = {}
    for turn, queue in ipairs(queues) do
        local share = math.ceil(room / (#queues - turn + 1))
        local count = take(queue, share)
        room = room - count
        if share > 0 and count == share then again[#again + 1] = queue end
    end
    queues = again
end

-- Ahead, only from what is long: otherwise one worker would keep what another has threads for.
for _, queue in ipairs(queues) do
    local length = redis.call('LLEN', KEYS[queue])
    if length > long then ahead = ahead - take(queue, math.min(ahead, length - long)) end
end

if #taken > 0 then
    redis.call('ZADD', index, unpack(scores))
    redis.call('HSET', unacked, unpack(noted))
end
return taken
"""
"""Forgets what is acknowledged, takes messages from the queues in turn, and notes them as Kombu does.

Keys: the index of what is unacknowledged, its hash, and the queues. Arguments: how many to take, how many more while a
queue is longer than what; their tags' prefix and the first one's number; how many are acknowledged, and their tags;
what follows each queue's messages in the hash.
Returns each message after the number of its queue.
"""
SCRIPT_SHA = sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()

RECEIVE_MAX = 1_000
"""Also how many are acknowledged at a time: a Lua function takes some thousands of arguments."""
LONG = 100
"""How many messages have to be left to others in a queue, so that a worker takes more than it has threads for."""
WAIT_SECONDS = 10
PAUSE_SECONDS = 1.0
OVERDUE_SECONDS = 25.0

logger = logging.getLogger("bankrun")


class Taken(NamedTuple):
    """A message that is noted as unacknowledged under ``tag``."""

    raw: bytes
    queue: str
    tag: str


class Loop(Protocol):
    """What is used of Kombu's event loop."""

    def add_reader(self, fds: int, callback: Callable[[], None]) -> Any:
        """Call when there is something to read."""

    def remove_reader(self, fd: int) -> None:
        """Call no longer."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        """Call once, later."""


class Wait:
    """Waits on a connection of its own until there is a message in one queue, and takes none."""

    def __init__(self, connection: Any, key: str, loop: Loop, woken: Callable[[], None]) -> None:
        self._connection = connection
        self._key = key
        self._loop = loop
        self._woken = woken
        self._descriptor: Any = None
        self._since: float | None = None

    def begin(self) -> None:
        """Wait from now on, if it does not wait already."""
        if self._since is not None:
            return
        if self._descriptor is None:
            self._connection.connect()
            self._descriptor = self._connection._sock.fileno()  # noqa: SLF001 - for the loop, as Kombu does
            self._loop.add_reader(self._descriptor, self._read)
        self._since = monotonic()
        self._connection.send_command(
            "BLMOVE", self._key, self._key, "RIGHT", "RIGHT", WAIT_SECONDS, check_health=False
        )

    def _read(self) -> None:
        try:
            self._connection.read_response()
        except ResponseError as error:
            logger.warning("cannot wait for messages in %s: %s", self._key, error)
            self._loop.call_later(PAUSE_SECONDS, self._end)
            return
        except BaseException:
            self.close()
            raise
        self._end()

    def _end(self) -> None:
        self._since = None
        self._woken()

    def check(self) -> None:
        """Give the connection up if its answer is long overdue: the other end may be gone."""
        if self._since is not None and monotonic() - self._since > WAIT_SECONDS + OVERDUE_SECONDS:
            logger.warning("no answer from Redis about %s; connecting again", self._key)
            self.close()
            self._woken()

    def close(self) -> None:
        """Wait no longer."""
        self._since = None
        self._forget()
        self._connection.disconnect()

    def _forget(self) -> None:
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            self._descriptor = None


class Receiver:
    """Takes messages for one channel, and acknowledges them. For the thread of its event loop alone."""

    def __init__(
        self, make_connection: Callable[[], Any], keys: tuple[str, str], key_of: Callable[[str], str], loop: Loop
    ) -> None:
        self._make_connection = make_connection
        self._connection = make_connection()
        self._keys = keys
        self._key_of = key_of
        self._loop = loop
        self._prefix = f"{uuid.uuid4()}."
        self._number = 0
        self._done: list[str] = []
        self._waits: dict[str, Wait] = {}
        self._known: dict[str, tuple[str, str]] = {}
        self._there_may_be_more = True
        self._paused = False
        self.in_doubt: list[str] = []

    def acknowledge(self, tag: str) -> None:
        """Forget a message, together with the next ones that are taken."""
        self._done.append(tag)

    def look(self) -> None:
        """Ask for messages, instead of waiting for them."""
        self._there_may_be_more = True

    def has_reason(self, room: int) -> bool:
        """Whether there is something to acknowledge, or something to take and room for it."""
        return not self._paused and bool(self._done or (room and self._there_may_be_more))

    def receive(self, queues: list[str], room: int, ahead: int = 0) -> list[Taken]:
        """Acknowledge what is done, and take up to ``room`` messages from the queues, the first one first.

        Up to ``ahead`` more are taken from a queue that stays long. A connection that fails meanwhile leaves open which
        of ``in_doubt`` are taken.
        """
        done = self._done[:RECEIVE_MAX]
        for queue in queues:
            if queue not in self._known:
                self._known[queue] = self._key_of(queue), f',"",{json.dumps(queue)}]'
        known = [self._known[queue] for queue in queues]
        first = self._number
        self._number = first + room + ahead  # never used again, whatever became of them
        try:
            answer = self._ask(
                [
                    *(2 + len(queues), *self._keys, *[key for key, _ in known]),
                    *(room, ahead, LONG, self._prefix, first, len(done), *done, *[end for _, end in known]),
                ]
            )
        except ResponseError as error:
            logger.warning("cannot take messages: %s", error)
            self._pause()
            return []
        except BaseException:
            self.in_doubt = [f"{self._prefix}{number}" for number in range(first, self._number)]
            raise
        del self._done[: len(done)]
        if room:
            self._there_may_be_more = len(answer) >= 2 * room
        return [
            Taken(answer[place + 1], queues[answer[place]], f"{self._prefix}{first + place // 2}")
            for place in range(0, len(answer), 2)
        ]

    def _ask(self, arguments: list[Any]) -> list[Any]:
        connection = self._connection
        connection.send_command("EVALSHA", SCRIPT_SHA, *arguments)
        try:
            answer = connection.read_response()
        except NoScriptError:  # a server that has been restarted
            connection.send_command("EVAL", SCRIPT, *arguments)
            answer = connection.read_response()
        assert isinstance(answer, list)
        return answer

    def _pause(self) -> None:
        def go_on() -> None:
            self._paused = False
            self.look()

        self._paused = True
        self._loop.call_later(PAUSE_SECONDS, go_on)

    def wait(self, queues: list[str]) -> None:
        """Wait until there is something in one of these queues, and in no other, unless there is more to take."""
        if self._there_may_be_more or self._paused:
            return
        for queue in queues:
            if queue not in self._waits:
                self._waits[queue] = Wait(self._make_connection(), self._key_of(queue), self._loop, self.look)
            self._waits[queue].begin()

    def leave(self, queue: str) -> None:
        """Wait for this queue no longer."""
        wait = self._waits.pop(queue, None)
        if wait is not None:
            wait.close()

    def check(self) -> None:
        """Look for connections whose other end is gone."""
        for wait in self._waits.values():
            wait.check()

    def close(self) -> None:
        """Acknowledge what is done, if the server still can be told, and close all connections."""
        try:
            while self._done:
                before = len(self._done)
                self.receive([], 0)
                if len(self._done) == before:
                    break
        except (RedisError, OSError) as error:
            logger.debug("%d messages come back, although they are done: %s", len(self._done), error)
        for queue in list(self._waits):
            self.leave(queue)
        self._connection.disconnect()
