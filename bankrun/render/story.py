"""What happened, in words: for each broken cell how much was lost, and one lost posting told step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from bankrun.results.models import Cell, Run


def explain(cell: Cell) -> Iterator[str]:
    """Yield the lines that explain a broken cell."""
    run = cell.shown
    again = f" (in run {run.repeat} of {len(cell.runs)})" if len(cell.runs) > 1 else ""
    yield f"{run.strategy} on {run.topology}{again}: {_losses(run)}"
    for finding in run.audit["findings"]:
        if finding["kind"] not in ("lost posting", "drift", "balance"):
            what = f"{finding['invariant']}, {finding['kind']}"
            yield f"  {what}: {finding['count']:,} times; first: {finding['examples'][0]}"
    if run.audit.get("example"):
        yield from _told(*run.audit["example"], topology=run.topology)


def _losses(run: Run) -> str:
    postings = 2 * run.applied
    lost = f"{run.lost_postings:,} of {postings:,} postings were overwritten"
    if run.unexplained:
        return f"{lost}; the total is off by {run.drift:+,}, of which {run.unexplained:,} is unexplained"
    if run.drift == 0 and run.lost_postings:
        return f"{lost}, and the total is right all the same: what they lost cancels out. A total proves nothing"
    return f"{lost}; together they were worth {run.lost_delta:+,}, so the total is off by {run.drift:+,}, to the cent"


def _told(lost: Mapping[str, Any], culprit: Mapping[str, Any], *, topology: str) -> Iterator[str]:
    """Tell how one posting was lost, in the order in which Postgres saw it happen."""
    names = ("A", "B")
    both = dict(zip(names, sorted((lost, culprit), key=lambda posting: posting["read_at"]), strict=True))
    begin = min(_time(posting["read_at"]) for posting in both.values())
    events = []
    for name, posting in both.items():
        change = f"{posting['delta']:+,}"
        events.append(
            (
                _time(posting["read_at"]),
                name,
                f"reads {posting['before']:,}, and will make it {posting['after']:,} ({change})",
            )
        )
        if posting.get("written_at"):
            events.append(
                (_time(posting["written_at"]), name, f"has written {posting['after']:,} (entry {posting['entry']})")
            )
        if posting.get("committed_at"):
            events.append((_time(posting["committed_at"]), name, "begins to commit; others see it once it is on disk"))
    apart = (
        "two instances: no thread lock reaches from one to the other"
        if lost["instance"] != culprit["instance"]
        else "one instance"
    )
    yield f"  For example, on account {lost['account']} ({apart}):"
    for name, posting in both.items():
        yield f"    {name} is {_who(posting)}, transfer {posting['transfer'][:8]}"
    for at, name, what in sorted(events, key=lambda event: event[0]):
        yield f"    {(at - begin).total_seconds() * 1000:8.2f} ms  {name} {what}"
    gone = next(name for name, posting in both.items() if posting is lost)
    yield (
        f"    {gone}'s {lost['delta']:+,} is gone: entry {culprit['entry']} was computed from {culprit['before']:,}, "
        f"as if entry {lost['entry']} had never been."
    )


def _who(posting: Mapping[str, Any]) -> str:
    thread = str(posting["thread"]).rpartition("_")[2]
    return f"{posting['instance']}, thread {thread}"


def _time(value: datetime | str) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)
