"""Writes the recording that the page shows before anything has run: the headline, run here, as the page saw it.

``python -m bankrun.page.recording FILE``; ``make recording`` writes the one that is shipped.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from typing import Any

from bank.settings import read_settings
from bankrun.page.feed import find_story, tell_all
from bankrun.page.form import read_plan
from bankrun.page.runner import Live
from bankrun.results.provenance import bankrun_version
from bankrun.results.store import write

SEED = "7"
SIZE_MAX = 60_000


def record(live: Live) -> dict[str, Any]:
    """Run the headline and return what the page saw. Raises RuntimeError if a cell did not end as it always does."""
    plan = read_plan({"seed": SEED})
    live.start(plan)
    with live.watched():
        while live.snapshot().state != "idle":
            time.sleep(0.2)
    now = live.snapshot()
    told = tell_all(now)
    verdicts = [(cell["strategy"], cell["topology"], cell.get("verdict")) for cell in told["cells"]]
    if now.trouble or len(told["films"]) != len(verdicts) or ("thread-lock", "3x8", "broken") not in verdicts:
        raise RuntimeError(f"not the headline: {now.trouble or verdicts}")
    stories = [find_story(now, cell["strategy"], cell["topology"]) for cell in told["cells"]]
    return {
        "recorded": datetime.now(UTC).date().isoformat(),
        "bankrun": bankrun_version(),
        "transfers": plan.workload.transfers,
        "accounts": plan.workload.accounts,
        "cells": told["cells"],
        "films": told["films"],
        "stories": stories,
    }


def main() -> None:
    """Write the recording."""
    live = Live(read_settings())
    try:
        text = json.dumps(record(live), separators=(",", ":"), ensure_ascii=False)
    finally:
        live.close()
    if len(text.encode()) > SIZE_MAX:
        raise RuntimeError(f"{len(text.encode()):,} bytes: the recording may have {SIZE_MAX:,}")
    write(sys.argv[1], text + "\n")


if __name__ == "__main__":
    main()
