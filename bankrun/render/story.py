"""What happened, in words: for each broken cell how much was lost, and one lost posting told step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bank.audit import PostingTold
from bankrun.results.models.comparison import Cell, Run


def explain(cell: Cell) -> Iterator[str]:
    """Yield the lines that explain a broken cell."""
    run = cell.shown
    again = f" (in run {run.repeat} of {len(cell.runs)})" if len(cell.runs) > 1 else ""
    yield f"{run.strategy} on {run.topology}{again}: {_count_losses(run)}"
    for finding in run.audit.findings:
        if finding.kind not in ("lost posting", "drift", "balance"):
            what = f"{finding.invariant}, {finding.kind}"
            yield f"  {what}: {finding.count:,} times; first: {finding.examples[0]}"
    if run.audit.example is not None:
        yield from _tell(*run.audit.example, claim=run.claim)


def _count_losses(run: Run) -> str:
    postings = 2 * run.applied
    lost = f"{run.lost_postings:,} of {postings:,} postings were overwritten"
    if run.unexplained:
        return f"{lost}; the total is off by {run.drift:+,}, of which {run.unexplained:,} is unexplained"
    if run.drift == 0 and run.lost_postings:
        return f"{lost}, and the total is right all the same: what they lost cancels out. A total proves nothing"
    return f"{lost}; together they were worth {run.lost_delta:+,}, so the total is off by {run.drift:+,}, to the cent"


def _tell(lost: PostingTold, culprit: PostingTold, *, claim: str) -> Iterator[str]:
    """Tell how one posting was lost, in the order in which Postgres saw it happen."""
    names = ("A", "B")
    both = dict(zip(names, sorted((lost, culprit), key=lambda posting: posting.read_at), strict=True))
    begin = min(posting.read_at for posting in both.values())
    events = []
    for name, posting in both.items():
        change = f"{posting.delta:+,}"
        events.append(
            (
                posting.read_at,
                name,
                f"reads {posting.before:,}, and will make it {posting.after:,} ({change})",
            )
        )
        if posting.written_at:
            events.append((posting.written_at, name, f"has written {posting.after:,} (entry {posting.entry})"))
        if posting.committed_at:
            events.append((posting.committed_at, name, "begins to commit; others see it once it is on disk"))
    apart = "two instances" if lost.instance != culprit.instance else "one instance"
    if lost.instance != culprit.instance and claim == "process":
        apart += ": no thread lock reaches from one to the other"
    yield f"  For example, on account {lost.account} ({apart}):"
    for name, posting in both.items():
        yield f"    {name} is {_name_thread(posting)}, transfer {posting.transfer[:8]}"
    for at, name, what in sorted(events, key=lambda event: event[0]):
        yield f"    {(at - begin).total_seconds() * 1000:8.2f} ms  {name} {what}"
    gone = next(name for name, posting in both.items() if posting is lost)
    yield (
        f"    {gone}'s {lost.delta:+,} is gone: entry {culprit.entry} was computed from {culprit.before:,}, "
        f"as if entry {lost.entry} had never been."
    )


def _name_thread(posting: PostingTold) -> str:
    thread = str(posting.thread).rpartition("_")[2]
    return f"{posting.instance}, thread {thread}"


def join_names(names: Sequence[str]) -> str:
    """Return names as a sentence has them."""
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else "none"
