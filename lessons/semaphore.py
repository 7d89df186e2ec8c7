"""A Semaphore counts free places: acquire() takes one, or waits until one is given back.

With as many places as the database has connections, no thread is ever refused one.
"""

from contextlib import AbstractContextManager, nullcontext

from stage import Outcome, Stage
from telling import Lesson, perform

CONNECTIONS_MAX = 2


class Server:
    """Lets two in and sends the third away, as Postgres does at max_connections."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.connections = self.refused = 0

    def query(self) -> None:
        if self.connections == CONNECTIONS_MAX:
            self.refused += 1
            self._stage.say("is refused: too many clients already")
            return
        self.connections += 1
        self._stage.say(f"is connected: {self.connections} of {CONNECTIONS_MAX}")
        self.connections -= 1
        self._stage.say(f"has closed its connection: {self.connections} of {CONNECTIONS_MAX}")


def without(stage: Stage) -> Outcome:
    """Four threads connect when they like."""
    return four_queries(stage, nullcontext())


def with_semaphore(stage: Stage) -> Outcome:
    """Four threads, and a semaphore with two places."""
    return four_queries(stage, stage.semaphore(CONNECTIONS_MAX))


def four_queries(stage: Stage, places: AbstractContextManager[None]) -> Outcome:
    server = Server(stage)

    def ask() -> None:
        with places:
            server.query()

    stage.play(A=ask, B=ask, C=ask, D=ask)
    return Outcome(server.refused > 0, f"{server.refused} of 4 were refused")


LESSON = Lesson(
    name="semaphore",
    idea=__doc__,
    unsafe=(without,),
    safe=(with_semaphore,),
    question="A BoundedSemaphore raises when it is released too often. Which bug does that find?",
    in_earnest="workers/process/meter.py lets only as many threads of a pool work as the topology says; "
    "the pool of connections in bank/postgres/database.py is one too.",
)

if __name__ == "__main__":
    perform(LESSON)
