"""Writes the recording that the page shows before anything has run: the headline, run here, as the page saw it.

``make recording`` writes the one that is shipped. On a machine with other work to do its rates say little.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime

from bank.errors import BankError
from bank.settings import read_settings
from bankrun.errors import BankrunError
from bankrun.page.feed import as_text, find_story, tell_all
from bankrun.page.form import read_plan
from bankrun.page.index import RECORDING, STATIC
from bankrun.page.runner import Live
from bankrun.results.provenance import bankrun_version
from bankrun.results.store import write

SEED = "7"
SIZE_MAX = 60_000


def record(live: Live) -> str:
    """Run the headline and return what the page saw. Raises BankError if a cell did not end as it always does."""
    plan = read_plan({"seed": SEED})
    live.start(plan)
    with live.watched():
        while live.snapshot().state != "idle":
            time.sleep(0.2)
    now = live.snapshot()
    told = tell_all(now)
    verdicts = [(cell["strategy"], cell["topology"], cell.get("verdict")) for cell in told["cells"]]
    if now.trouble or len(told["films"]) != len(verdicts) or ("thread-lock", "3x8", "broken") not in verdicts:
        raise BankError(f"this is not the headline, and is not kept: {now.trouble or verdicts}")
    text = as_text(
        {
            "recorded": datetime.now(UTC).date().isoformat(),
            "bankrun": bankrun_version(),
            "transfers": plan.workload.transfers,
            "accounts": plan.workload.accounts,
            "cells": told["cells"],
            "films": told["films"],
            "stories": [find_story(now, cell["strategy"], cell["topology"]) for cell in told["cells"]],
        }
    )
    if len(text.encode()) > SIZE_MAX:
        raise BankError(f"the recording has {len(text.encode()):,} bytes, and may have {SIZE_MAX:,}")
    return text


def main() -> None:
    """Write the recording."""
    live = Live(read_settings())
    try:
        write(str(STATIC / RECORDING), record(live) + "\n")
    except (BankError, BankrunError) as error:
        sys.exit(f"bankrun: {error}")
    finally:
        live.close()


if __name__ == "__main__":
    main()
