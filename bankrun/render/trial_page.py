"""A trial as one HTML file: the verdicts, the shortest schedule as a picture and as a story, and how it was found.

It works offline and without JavaScript. It knows no bank.
"""

from __future__ import annotations

from html import escape

from bankrun.render.svg import ALONE, SHAPES, Picture
from bankrun.results.models.trial import TrialCase, TrialResult

LANE, BOX, GAP, LABELS = 58.0, 34.0, 6.0, 40.0
WHERE = {"two": "In two processes", "same": "In two threads of one process"}
STYLE = """
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto;
       max-width: 62rem; padding: 0 1rem }
h1 { font-size: 1.4rem } .verdict { border-left: 5px solid var(--line); padding: .4rem .8rem; background: var(--soft) }
.verdict.broken, .verdict.error { border-color: var(--broken) } .verdict.safe { border-color: var(--safe) }
table { border-collapse: collapse; width: 100%; font: 13px/1.45 ui-monospace, monospace }
th, td { border: 1px solid var(--line); padding: .35rem .5rem; text-align: left; vertical-align: top; width: 50% }
td div { overflow-wrap: anywhere } .line { color: var(--muted) } .waits { color: var(--broken) }
.scroll { overflow-x: auto } code { overflow-wrap: anywhere } dt { color: var(--muted) } dd { margin: 0 0 .5rem }
"""


def trial_page(trial: TrialResult) -> str:
    """Return the report of a trial."""
    parts = [f"<h1>{escape(' against '.join(trial.programs))}</h1>"]
    for case in trial.cases:
        sentence = escape(case.sentence)
        tone = case.verdict.replace(" ", "-")
        parts.append(f'<h2>{WHERE[case.instances]}</h2><p class="verdict {tone}">{sentence}</p>')
        if case.steps:
            parts.append(f"<p>The shortest schedule that shows it is <code>{escape(case.shortest or '')}</code>.</p>")
            parts.append(f'<div class="scroll">{draw_schedule(trial, case)}</div>{_steps(trial, case)}')
    parts.append(_how(trial))
    title = escape(f"{trial.verdict}: {trial.programs[0]}")
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{ALONE}{SHAPES}{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def draw_schedule(trial: TrialResult, case: TrialCase) -> str:
    """Return a schedule as a picture: a lane for each program, a box for each step, dashed where it waits."""
    names = [chr(ord("A") + number) for number in range(len(trial.programs))]
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


def _steps(trial: TrialResult, case: TrialCase) -> str:
    names = [chr(ord("A") + number) for number in range(len(trial.programs))]
    head = "".join(f"<th>{name}: {escape(program)}</th>" for name, program in zip(names, trial.programs, strict=True))
    rows = []
    for number, step in enumerate(case.steps, 1):
        told = [f"<div>{number}. {escape(step.statements[0])}</div>"] if step.statements else [f"<div>{number}.</div>"]
        told += [f"<div>{escape(one)}</div>" for one in step.statements[1:]]
        told += [f'<div class="line">{escape(step.line)}</div>'] if step.line else []
        told += [f'<div class="waits">waits for {escape(", ".join(step.waits_for))}</div>'] if step.waits_for else []
        cells = {step.participant: "".join(told)}
        for other in step.goes_on:
            cells.setdefault(other, '<div class="line">goes on</div>')
        rows.append("<tr>" + "".join(f"<td>{cells.get(name, '')}</td>" for name in names) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _how(trial: TrialResult) -> str:
    facts = {
        "command": trial.provenance.command,
        "started": trial.provenance.started,
        "bankrun": trial.provenance.bankrun,
        "set-up": trial.setup or "none",
        "invariant": trial.invariant or "none",
        "ignored": ", ".join(trial.ignored) or "nothing",
        "files": ", ".join(f"{name} {digest[:12]}" for name, digest in trial.files.items()) or "none",
    }
    told = "".join(f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>" for name, value in facts.items())
    cases = "".join(
        f"<dt>{WHERE[case.instances].lower()}</dt><dd>{case.executions:,} interleavings in {case.seconds:,.1f} s, "
        f"{'complete' if case.complete else 'not complete'}; {case.broken:,} broken, {case.error:,} error, "
        f"{case.needs_retry:,} to be run again</dd>"
        for case in trial.cases
    )
    return f"<h2>How it was found</h2><dl>{told}{cases}</dl>"
