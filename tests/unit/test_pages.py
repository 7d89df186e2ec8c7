"""Pages that repeat what the code says: they must say all of it, and nothing that is not there."""

from __future__ import annotations

import re
import textwrap
import tomllib
from pathlib import Path

import pytest

from bank.settings import OF_COMPOSE, PREFIX, Settings
from bank.strategies import STRATEGIES
from bankrun.cli.app import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("lessons/*.md")] if path.is_file()
)


def read(name: str) -> str:
    """Return a page of ours."""
    return (ROOT / name).read_text(encoding="utf-8")


def settings_in(heading: str) -> dict[str, str]:
    """Return the table under a heading of the page about settings: name and default."""
    _, found, rest = read("docs/settings.md").partition(f"## {heading}\n")
    assert found, heading
    return dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", rest.partition("\n## ")[0], re.MULTILINE))


def test_the_page_of_settings_has_every_one_with_its_default() -> None:
    shown = settings_in("Of bankrun")
    defaults = {PREFIX + name.upper(): field.default for name, field in Settings.model_fields.items()}
    assert shown == {
        name: "none" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
        for name, default in defaults.items()
    }


def test_the_page_of_settings_has_those_of_compose() -> None:
    shown = settings_in("Of compose.yaml")
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", read("compose.yaml")))
    proxies = {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}
    of_both = {name: used.pop(name) for name in list(used) if name in settings_in("Of bankrun")}
    assert shown == used | dict.fromkeys(proxies, "none")
    assert {name for name in shown if name.startswith(PREFIX)} == OF_COMPOSE
    example = dict(re.findall(r"^#(\w+)=(\S+)", read(".env.example"), re.MULTILINE))
    assert example == used | of_both


def test_the_page_of_commands_has_every_one_in_the_order_of_the_help() -> None:
    assert re.findall(r"^\| `bankrun ([\w-]+)[^`]*` \| ", read("docs/commands.md"), re.MULTILINE) == list(COMMANDS)


def test_the_readme_has_a_row_for_every_strategy() -> None:
    assert re.findall(r"^\| `([\w-]+)` \| ", read("README.md"), re.MULTILINE) == list(STRATEGIES)


def test_the_map_in_contributing_has_every_room() -> None:
    rooms = {
        f"{path.parent.relative_to(ROOT).as_posix()}/"
        for package in ("bank", "workers", "bankrun")
        for path in [*ROOT.glob(f"{package}/__init__.py"), *ROOT.glob(f"{package}/*/__init__.py")]
    }
    shown = re.findall(r"^\| `((?:bank|workers|bankrun)/\w*/?)` \| ", read("CONTRIBUTING.md"), re.MULTILINE)
    assert {*shown, "bankrun/"} == rooms


def test_the_strategy_in_contributing_is_as_its_file_has_it() -> None:
    (shown,) = re.findall(r"^ *```python\n(.*?)^ *```", read("CONTRIBUTING.md"), re.MULTILINE | re.DOTALL)
    lines = read("bank/strategies/serializable.py").splitlines()
    assert not [line for line in textwrap.dedent(shown).splitlines() if line not in lines]


def test_the_readme_is_short_enough_to_be_read() -> None:
    text = read("README.md")
    assert len(text.splitlines()) <= 150
    prose = re.sub(r"^\|.*$|^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    assert len(prose.split()) <= 1_200


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    headings = re.findall(r"^## (\S+) - (unreleased|\d{4}-\d\d-\d\d)$", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0][0] == version
    assert [name for name, when in headings[1:] if when == "unreleased"] == []
    assert len(headings) == len(re.findall(r"^## ", read("CHANGELOG.md"), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = page.parent / name if name else page
        assert there.exists(), f"{page.name} points to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name} points to {target}"
    for file in re.findall(
        r"`((?:bank|workers|bankrun|scripts|tests|tools|examples|lessons|deploy)/[\w./-]+\.\w+)`", text
    ):
        assert (ROOT / file).is_file(), f"{page.name} names {file}"
