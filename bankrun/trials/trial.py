"""Put programs on trial: a server, a scratch database, every interleaving, a verdict.

found = trial("shop.py:buy(1)", setup="schema.sql")
assert found.verdict == "safe", found.story
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bankrun.errors import BankrunError, CannotStart
from bankrun.results.models.trial import WORST_FIRST
from bankrun.schedule import SETTINGS, Budget, Engine, Execution, NotStarted, ScheduleError, Server, prepare_database
from bankrun.servers import places
from bankrun.servers.binaries import without_libpq_defaults
from bankrun.trials.background import tell_schedule
from bankrun.trials.case import STARTED, Asked, Case, CaseFound, Tell
from bankrun.trials.judging.invariant import Invariant
from bankrun.trials.judging.judge import BROKEN, ERROR, NEEDS_RETRY, Finding
from bankrun.trials.judging.outcomes import Place
from bankrun.trials.judging.yardstick import NotTheSame
from bankrun.trials.running import scratch
from bankrun.trials.running.addresses import Address, read_templates
from bankrun.trials.running.crew import SAME, check_arguments, name_programs, participants, wanted_instances
from bankrun.trials.running.programs import Call, Command, Program, Script, describe_function, pair
from bankrun.trials.story import tell_story
from bankrun.trials.verdict import say_verdict

NOT_IMPORTED = "bankrun.trials.running.participant cannot be imported: ImportError: "
EXECUTIONS, SECONDS = 5_000, 60.0
ISOLATIONS = ("read committed", "repeatable read", "serializable")
Given = Callable[..., Any] | str | Program


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be found out: the programs, and how they are judged."""

    programs: tuple[Program, ...]
    setup: Call | Script | None = None
    invariant: str | None = None
    judge: Literal["serial", "invariant"] = "serial"
    instances: str = "both"
    ignore: tuple[str, ...] = ()
    isolation: str | None = None
    preemptions: int | None = None
    executions: int = EXECUTIONS
    seconds: float = SECONDS
    env: tuple[str, ...] = ()
    database_url: str | None = None

    def __post_init__(self) -> None:
        """Raise CannotStart, in a sentence, for what cannot be asked."""
        wanted_instances(self.instances, self.programs)
        read_templates(self.env)
        for program in self.programs:
            check_arguments(program)
        if self.judge not in ("serial", "invariant"):
            raise CannotStart(f"judge={self.judge!r}: serial or invariant")
        if self.judge == "invariant" and not self.invariant:
            raise CannotStart("--judge invariant needs an --invariant: there is nothing else to judge by then")
        if self.isolation is not None and self.isolation not in ISOLATIONS:
            raise CannotStart(f"isolation={self.isolation!r}: {', '.join(ISOLATIONS)}")
        if self.executions < 1 or self.seconds <= 0 or (self.preemptions is not None and self.preemptions < 0):
            raise CannotStart(
                f"executions={self.executions}, seconds={self.seconds:g}, preemptions={self.preemptions}: "
                "at least one execution, more than no time, no fewer than no preemptions"
            )
        for one in self.ignore:
            if len(one.split(".")) not in (2, 3):
                raise CannotStart(f"--ignore {one!r}: a column is given as table.column")


@dataclass(frozen=True, slots=True)
class Trial:
    """What was found: in two processes, in one, or in both."""

    question: Question
    cases: tuple[CaseFound, ...]

    @property
    def worst(self) -> CaseFound:
        """The case with the worst verdict."""
        return min(self.cases, key=lambda case: WORST_FIRST.index(case.verdict))

    @property
    def verdict(self) -> str:
        """The worst verdict: ``safe``, ``broken``, ``error``, ``needs retry`` or ``inconclusive``."""
        return self.worst.verdict

    @property
    def complete(self) -> bool:
        """Whether every interleaving of every case was run."""
        return all(case.complete for case in self.cases)

    @property
    def executions(self) -> int:
        """How many interleavings were run."""
        return sum(case.executions for case in self.cases)

    @property
    def shortest(self) -> str:
        """The id of the shortest schedule that shows the verdict, for `bankrun replay`."""
        return self.worst.shortest

    @property
    def difference(self) -> str:
        """In a sentence, what is wrong with it."""
        return self.worst.difference

    @property
    def story(self) -> str:
        """The shortest schedule that shows the verdict, step by step."""
        return self.worst.story

    @property
    def sentences(self) -> tuple[str, ...]:
        """The verdict of each case, as `bankrun try` prints it."""
        return tuple(say_verdict(self.question.programs, case) for case in self.cases)


def ask(
    programs: Sequence[Given],
    *,
    setup: Given | None = None,
    env: Mapping[str, str] | Sequence[str] = (),
    ignore: Sequence[str] = (),
    **options: Any,
) -> Question:
    """Return a question, made of what a user of Python gives. Raises CannotStart for what is no program."""
    described = describe_function(_as_text(setup)) if setup is not None else None
    if isinstance(described, Command):
        raise CannotStart("the set-up is FILE.sql or FILE.py:function")
    return Question(
        pair([describe_function(_as_text(one)) for one in programs]),
        setup=described,
        env=tuple(f"{name}={template}" for name, template in env.items()) if isinstance(env, Mapping) else tuple(env),
        ignore=tuple(ignore),
        **options,
    )


def _as_text(given: Any) -> Any:
    return str(given) if isinstance(given, Path) else given


def trial(
    *programs: Given,
    setup: Given | None = None,
    invariant: str | None = None,
    judge: Literal["serial", "invariant"] = "serial",
    instances: Literal["two", "same", "both"] = "both",
    ignore: Sequence[str] = (),
    isolation: Literal["read committed", "repeatable read", "serializable"] | None = None,
    preemptions: int | None = None,
    executions: int = EXECUTIONS,
    seconds: float = SECONDS,
    env: Mapping[str, str] | Sequence[str] = (),
    database_url: str | None = None,
    state_dir: Path | None = None,
) -> Trial:
    """Run every interleaving of some programs, and return what was found.

    A program is a function of a file, or text as on the command line: ``"shop.py:buy(1)"``, ``"transfer.sql"``; one
    alone meets itself. ``setup`` builds schema and data, in a scratch database of a server of its own, or of
    ``database_url``. Raises CannotStart, in one sentence, if nothing could be started, and BankrunError if a program
    fails in every order.
    """
    question = ask(
        programs,
        setup=setup,
        invariant=invariant,
        judge=judge,
        instances=instances,
        ignore=ignore,
        isolation=isolation,
        preemptions=preemptions,
        executions=executions,
        seconds=seconds,
        env=env,
        database_url=database_url,
    )
    return put_on_trial(question, state_dir=state_dir)


def put_on_trial(
    question: Question,
    *,
    state_dir: Path | None = None,
    place: places.Place | None = None,
    tell: Tell = lambda what, count: None,
) -> Trial:
    """Answer a question, on a server that is there or on one of its own. Raises as ``trial`` does."""
    cases: list[CaseFound] = []
    with open_server(question.database_url, state_dir) if place is None else nullcontext(place) as server:
        for instances in wanted_instances(question.instances, question.programs):
            with _open_case(question, server, instances) as case:
                tell(f"{instances}: serial orders", 0)
                found = _run_case(case, instances, tell)
                if found.shortest and found.verdict in (BROKEN, ERROR, NEEDS_RETRY):
                    replayed = case.replay(found.shortest.partition("/")[2])
                    found.story = tell_story(found.shortest, question.programs, replayed.execution, replayed.finding)
                    found.steps, found.background = tell_schedule(question.programs, case, replayed)
                cases.append(found)
    return Trial(question, tuple(cases))


def _run_case(case: Case, instances: str, tell: Tell) -> CaseFound:
    try:
        case.learn()
        return case.explore(tell)
    except NotTheSame as error:
        return CaseFound(instances, reason=str(error))


def replay_schedule(
    question: Question, schedule: str, *, state_dir: Path | None = None
) -> tuple[Execution, Finding | None, str]:
    """Run one schedule of a trial again, and return it, what it is worth, and its story."""
    instances, _, steps = schedule.partition("/")
    if instances not in wanted_instances("both", question.programs) or not steps.replace(STARTED, "", 1).isalpha():
        raise CannotStart(f"{schedule!r}: a schedule of this trial is two/AABB, as its file names one")
    with open_server(question.database_url, state_dir) as place, _open_case(question, place, instances) as case:
        case.learn()
        replayed = case.replay(steps)
    execution, finding = replayed.execution, replayed.finding
    return execution, finding, tell_story(schedule, question.programs, execution, finding)


@contextmanager
def open_server(database_url: str | None = None, state_dir: Path | None = None) -> Iterator[places.Place]:
    """Start a server of our own for the block, which serves one trial after the other, or use the given one."""
    asked = os.environ.get("BANKRUN_STATE_DIR")
    directory = state_dir or (Path(asked) if asked else None)
    given = places.read_place(database_url) if database_url else None
    with (
        without_libpq_defaults(),
        scratch.open_place(directory, SETTINGS) if given is None else nullcontext(given) as place,
    ):
        yield place


@contextmanager
def _open_case(question: Question, place: places.Place, instances: str) -> Iterator[Case]:
    """Set a database up, and an engine on it, for the block."""
    templates = read_templates(question.env)
    programs = name_programs(question.programs)
    try:
        with scratch.scratch_database(place) as address:
            windows, keys, columns = _set_up(question, place, address, templates)
            server = Server(place.host, place.port, address.user, place.password or None, address.database)

            def environment(_: str, given: Mapping[str, str]) -> Mapping[str, str]:
                at = Address(given["PGHOST"], int(given["PGPORT"]), address.user, address.database, place.password)
                return at.environment(templates)

            ignored = _read_ignored(question.ignore, columns)
            with closing(Invariant(question.invariant or "", lambda: place.connect(address.database))) as invariant:
                if question.invariant:
                    invariant.check_before()
                with Engine(
                    server, participants(programs, instances), environment=environment, tcp=instances == SAME
                ) as engine:
                    if not place.is_ours:
                        with place.connect() as keeper:
                            places.mark(keeper, address.database + places.TEMPLATE_SUFFIX)
                    asked = Asked(
                        invariant if question.invariant else None,
                        question.judge == "serial",
                        ignored,
                        question.preemptions,
                        Budget(question.executions, question.seconds),
                    )
                    yield Case(engine, programs, instances, asked, keys=keys, windows=windows)
    except NotStarted as error:
        raise CannotStart(str(error).removeprefix(NOT_IMPORTED)) from error
    except ScheduleError as error:
        raise BankrunError(str(error)) from error


def _set_up(
    question: Question, place: places.Place, address: Address, templates: Mapping[str, str]
) -> tuple[Any, Mapping[str, Sequence[str]], frozenset[str]]:
    if place.is_ours:
        with place.connect(address.database) as connection:
            prepare_database(connection)
    scratch.set_up(address, question.setup, templates)
    with place.connect(address.database) as connection:
        if question.isolation is not None:
            scratch.set_isolation(connection, address.database, question.isolation)
        windows = scratch.spread_sequences(connection)
        keys = {table.removeprefix("public."): names for table, names in scratch.primary_keys(connection).items()}
        return windows, keys, scratch.columns(connection)


def _read_ignored(ignore: Sequence[str], columns: frozenset[str]) -> frozenset[Place]:
    """Return the places. Raises CannotStart for a column that does not exist."""
    for one in ignore:
        if one.removeprefix("public.") not in columns:
            raise CannotStart(f"--ignore {one}: the set-up makes no such column")
    parts = [one.removeprefix("public.").rpartition(".") for one in ignore]
    return frozenset(Place("row", table, column) for table, _, column in parts)
