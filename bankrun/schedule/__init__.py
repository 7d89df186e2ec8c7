"""The engine: who may take a step, in which order, all of them.

Programs reach Postgres through a proxy that holds each request until the scheduler releases it; Postgres says what
each step touched; steps that do not depend on each other are not tried in both orders. The room knows no bank, no
workers, and nothing else of ours.
"""

from bankrun.schedule.cast.control import Abandoned, Control, TooManyRetries
from bankrun.schedule.cast.participant import Call, Command, Outcome
from bankrun.schedule.cast.warmed import Warmed
from bankrun.schedule.engine import Engine
from bankrun.schedule.errors import Diverged, Failed, NotStarted, ScheduleError, Stuck, Unsupported, WireError
from bankrun.schedule.observation.footprints import Footprint, depends
from bankrun.schedule.restore import Rows, digest
from bankrun.schedule.search import Budget, Exploration, explore, follow, replay, run_serially
from bankrun.schedule.server import SETTINGS, Server, prepare_database
from bankrun.schedule.trace import CLOCK, Execution, Statement, Step

__all__ = [
    "CLOCK",
    "SETTINGS",
    "Abandoned",
    "Budget",
    "Call",
    "Command",
    "Control",
    "Diverged",
    "Engine",
    "Execution",
    "Exploration",
    "Failed",
    "Footprint",
    "NotStarted",
    "Outcome",
    "Rows",
    "ScheduleError",
    "Server",
    "Statement",
    "Step",
    "Stuck",
    "TooManyRetries",
    "Unsupported",
    "Warmed",
    "WireError",
    "depends",
    "digest",
    "explore",
    "follow",
    "prepare_database",
    "replay",
    "run_serially",
]
