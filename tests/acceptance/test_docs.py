"""The pages about one's own strategies: their code is run, and shown as it is in the files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bank.outside.template import STRATEGY, TEST
from tests.acceptance.conftest import SECONDS_MAX, environment
from tests.acceptance.test_own import edit

pytestmark = pytest.mark.long


ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[str]:
    """Return the Python on a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_api_does_what_its_page_shows(cli_state: Path, tmp_path: Path) -> None:
    page = blocks("api.md")
    assert len(page) == 3
    (tmp_path / "page.py").write_text("\n".join(page))
    (tmp_path / "my_lock.py").write_text(STRATEGY.substitute(module="my_lock", name="MyLock"))
    edit(tmp_path / "my_lock.py", "= Claim.NOTHING", "= Claim.EVERYWHERE")
    edit(tmp_path / "my_lock.py", "ORDER BY id", "ORDER BY id FOR UPDATE")
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=tmp_path,
        env=environment(cli_state),
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "none of 12 interleavings is broken"
    assert said[1].startswith("none/two/same-pair/")
    assert "is off the books" in done.stdout
    assert any(line.startswith("my_lock:MyLock 2x2 0 0 ") for line in said)
    assert "0 are pending" in said


@pytest.mark.parametrize("block", blocks("your-own.md"), ids=lambda block: block.strip().partition("\n")[0])
def test_what_the_page_shows_is_what_the_start_has(block: str) -> None:
    shown = STRATEGY.template.replace("= Claim.NOTHING", "= Claim.EVERYWHERE").replace(
        'id\n    "', 'id FOR UPDATE\n    "'
    )
    for paragraph in block.split("\n\n"):
        if paragraph.strip():
            known = shown + TEST.substitute(module="my_lock", name="MyLock")
            assert paragraph.strip("\n") in known
