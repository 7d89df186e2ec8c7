"""A trial as one HTML file: the verdicts, the shortest schedule as a picture and step by step. It knows no bank."""

from __future__ import annotations

from collections.abc import Iterator

from bankrun.render.html import Figure, Headline, render_page
from bankrun.render.svg import Picture
from bankrun.results.models.schedule import StepTold
from bankrun.results.models.trial import TrialCase, TrialResult

LANE, BOX, GAP, LABELS = 58.0, 34.0, 6.0, 40.0
WHERE = {"two": "two processes", "same": "two threads of one process"}


def trial_page(trial: TrialResult) -> str:
    """Return the report of a trial."""
    summary = Figure(
        "summary",
        "What was found",
        "Every interleaving must end like one program after the other.",
        ("in", "interleavings", "broken", "error", "to be run again", "complete", "verdict"),
        [
            (
                WHERE[case.instances],
                f"{case.executions:,}",
                f"{case.broken:,}",
                f"{case.error:,}",
                f"{case.needs_retry:,}",
                "yes" if case.complete else "no",
                case.verdict,
            )
            for case in trial.cases
        ],
    )
    sentences = [f"In {WHERE[case.instances]}: {case.sentence}" for case in trial.cases]
    tone = {"error": "broken", "needs retry": "inconclusive"}.get(trial.verdict, trial.verdict)
    return render_page(
        Headline(" against ".join(trial.programs), tone, trial.worst.sentence, sentences if len(sentences) > 1 else []),
        summary,
        [_tell_schedule(trial, case) for case in trial.cases if case.steps],
        list(_how(trial)),
        trial.provenance.command,
    )


def _names(trial: TrialResult) -> list[str]:
    return [chr(ord("A") + number) for number in range(len(trial.programs))]


def _tell_schedule(trial: TrialResult, case: TrialCase) -> Figure:
    """Return the shortest schedule: a picture, and a row for each step under the program that took it."""
    names = _names(trial)
    rows = []
    for number, step in enumerate(case.steps, 1):
        cells = {name: "; ".join(["goes on", *step.then.get(name, [])]) for name in step.goes_on}
        cells[step.participant] = _tell_step(step)
        rows.append((str(number), *(cells.get(name, "") for name in names)))
    return Figure(
        f"schedule-{case.instances}",
        f"The shortest schedule in {WHERE[case.instances]}: {case.shortest}",
        case.difference or case.sentence,
        ("step", *(f"{name}: {program}" for name, program in zip(names, trial.programs, strict=True))),
        rows,
        svg=draw_schedule(trial, case),
    )


def _tell_step(step: StepTold) -> str:
    told = "; ".join(step.statements)
    told += f" ({step.line})" if step.line else ""
    return told + (f"; waits for {' and '.join(step.waits_for)}" if step.waits_for else "")


def _how(trial: TrialResult) -> Iterator[tuple[str, str]]:
    yield "begun", trial.provenance.started
    yield "bankrun", trial.provenance.bankrun
    yield "set-up", trial.setup or "none"
    yield "invariant", trial.invariant or "none"
    yield "ignored", ", ".join(trial.ignored) or "nothing"
    yield "not compared", ", ".join(sorted({one for case in trial.cases for one in case.not_compared})) or "nothing"
    for name, digest in trial.files.items():
        yield name, f"SHA-256 {digest}"
    for case in trial.cases:
        yield WHERE[case.instances], f"{case.seconds:,.1f} s"


def draw_schedule(trial: TrialResult, case: TrialCase) -> str:
    """Return a schedule as a picture: a lane for each program, a box for each step, dashed where it waits."""
    names = _names(trial)
    width = LABELS + (BOX + GAP) * len(case.steps) + 20
    picture = Picture(
        f"schedule-{case.instances}",
        f"The schedule {case.shortest}",
        "; ".join(f"{number}: {step.participant}" for number, step in enumerate(case.steps, 1)),
        width=width,
    )
    for number, name in enumerate(names):
        middle = 20 + LANE * number + BOX / 2
        picture.add("line", "lane", x1=LABELS, x2=width - 10, y1=middle, y2=middle)
        picture.add("text", "strong", name, x=8.0, y=middle + 5)
    for number, step in enumerate(case.steps):
        x = LABELS + (BOX + GAP) * number + GAP
        y = 20 + LANE * names.index(step.participant) if step.participant in names else 20.0
        picture.add("rect", "lost" if step.waits_for else "other", x=x, y=y, width=BOX, height=BOX, rx=4)
        picture.add("text", "strong", str(number + 1), x=x + BOX / 2, y=y + BOX / 2 + 5, text_anchor="middle")
    bottom = 20 + LANE * len(names)
    picture.add("text", "small", "each box is a step, in this order; dashed: it waits for another", x=8.0, y=bottom + 4)
    return picture.svg(bottom + 16)
