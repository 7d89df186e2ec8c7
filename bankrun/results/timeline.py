"""How a run went, told from the bank's journal after it: nothing is measured twice, and nothing while it runs.

Every entry says what it made of its account, and Postgres when that was committed. So the total at each moment is known
exactly, and is then thinned out to as many samples as a picture can show.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, LiteralString

from bank.audit import Audit, PostingTold, tell
from bank.postgres.database import Database, Transaction

SAMPLES = 120
SCENE_MAX = 12
MARGIN_MAX = timedelta(days=1)

TOTALS: LiteralString = """
    WITH posted AS (
        SELECT {at} AS at, e.transfer_id, e.after::numeric - lag(e.after, 1, a.opening) OVER account AS change,
               (e.previous_entry IS DISTINCT FROM lag(e.id) OVER account)::int AS clobber
        FROM entries e JOIN accounts a ON a.id = e.account_id
        WINDOW account AS (PARTITION BY e.account_id ORDER BY e.seq)
    ), span AS (
        SELECT min(at) AS first, greatest(extract(epoch FROM max(at) - min(at)), 0.001) AS seconds
        FROM posted WHERE isfinite(at)
    ), sampled AS (
        SELECT least(%(samples)s, 1 + floor(extract(epoch FROM at - first) * %(samples)s / seconds)) AS sample,
               sum(change) AS change, count(DISTINCT transfer_id) AS applied, sum(clobber) AS clobbers
        FROM posted, span WHERE isfinite(at) GROUP BY 1
    )
    SELECT round(sample * seconds / %(samples)s, 4)::float, (sum(change) OVER done),
           (sum(applied) OVER done)::bigint, (sum(clobbers) OVER done)::bigint
    FROM sampled, span WINDOW done AS (ORDER BY sample) ORDER BY sample
"""
NEIGHBOURS: LiteralString = """
    SELECT id FROM entries
    WHERE account_id = %(account)s AND written_at >= %(begin)s AND read_at <= %(end)s
    ORDER BY id = ANY(%(ids)s) DESC, abs(seq::numeric - %(seq)s) LIMIT %(most)s
"""


@dataclass(frozen=True, slots=True)
class History:
    """The bank's drift over time. Each list has a value for each moment in ``seconds`` since the first commit.

    ``applied`` counts the transfers until then, ``clobbers`` the entries that wrote over what they had not read;
    ``instances`` is how many transfers each instance applied in the whole run.
    """

    seconds: list[float] = field(default_factory=list)
    drift: list[int] = field(default_factory=list)
    applied: list[int] = field(default_factory=list)
    clobbers: list[int] = field(default_factory=list)
    instances: dict[str, int] = field(default_factory=dict)

    def series(self) -> tuple[list[float], list[int], list[int], list[int]]:
        """Return the lists that have a value for each moment, the moments first."""
        return self.seconds, self.drift, self.applied, self.clobbers


def read_history(database: Database) -> History:
    """Return how the run that is in the bank went. By commit times where the server keeps them, else by writes."""
    with database.transaction() as transaction:
        tracked = transaction.execute("SHOW track_commit_timestamp").fetchone() == ("on",)
        totals = (
            TOTALS.replace("{at}", "pg_xact_commit_timestamp(e.xmin)")
            if tracked
            else TOTALS.replace("{at}", "e.written_at")
        )
        rows = transaction.execute(totals, {"samples": SAMPLES}).fetchall()
        instances = dict(
            transaction.execute(
                "SELECT coalesce(instance, ''), count(*) FROM transfers WHERE status = 'applied' GROUP BY 1 ORDER BY 1"
            ).fetchall()
        )
    seconds, drift, applied, clobbers = ([row[column] for row in rows] for column in range(4))
    return History(seconds, [int(change) for change in drift], applied, clobbers, instances)


def read_seconds(database: Database) -> float:
    """Return the time from the first claim to the last outcome, by Postgres' clock; what is at no time is left out."""
    with database.transaction() as transaction:
        tracked = transaction.execute("SHOW track_commit_timestamp").fetchone() == ("on",)
        row = transaction.execute(
            """
            SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin)) - min(decided_at))
            FROM transfers WHERE isfinite(decided_at)
            """
            if tracked
            else """
            SELECT extract(epoch FROM max(decided_at) - min(decided_at)) FROM transfers WHERE isfinite(decided_at)
            """
        ).fetchone()
    return float(row[0]) if row is not None and row[0] is not None else 0.0


def read_scene(database: Database, found: Audit) -> list[PostingTold]:
    """Return the audit's example of a lost posting among its neighbours: who else was at that account.

    The first is the lost posting, the second the one that overwrote it; the others come in the order of their writes.
    """
    if found.example is None:
        return []
    with database.transaction() as transaction:
        return find_scene(transaction, *found.example)


def find_scene(transaction: Transaction, lost: PostingTold, culprit: PostingTold) -> list[PostingTold]:
    """Return a lost posting, its culprit, and the postings to the same account that were under way around them."""
    begin = min(lost.read_at, culprit.read_at)
    end = max(posting.written_at or posting.read_at for posting in (lost, culprit))
    margin = min((end - begin) / 2, MARGIN_MAX)
    where = {"account": lost.account, "seq": culprit.seq, "begin": begin - margin, "end": end + margin}
    ids = [
        row[0]
        for row in transaction.execute(NEIGHBOURS, {**where, "most": SCENE_MAX, "ids": [lost.entry, culprit.entry]})
    ]
    others = [posting for posting in tell(transaction, ids) if posting.entry not in (lost.entry, culprit.entry)]
    return [lost, culprit, *others]


def plain_posting(posting: PostingTold) -> dict[str, Any]:
    """Return a posting as it is saved."""
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in asdict(posting).items()}
