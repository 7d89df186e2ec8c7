"""What runs beside the user's program: results as JSON has them, and files found by name."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

from bankrun.trials.judging.values import Cutter, Windows, is_coarse
from bankrun.trials.running.participant import call, encode, module_of


@dataclass
class Order:
    number: int
    total: Decimal


def test_a_result_is_what_json_has_and_no_address_is_in_it() -> None:
    assert encode(Order(1, Decimal("9.50"))) == {"number": 1, "total": "9.50"}
    assert encode({1: (True, None), "at": datetime(2026, 1, 2, tzinfo=UTC)}) == {
        "1": [True, None],
        "at": "2026-01-02 00:00:00+00:00",
    }
    assert encode({UUID(int=1), UUID(int=2)}) == [str(UUID(int=1)), str(UUID(int=2))]
    assert encode(object()) == "<object>"
    assert encode(b"\xff") == "ff"


def test_a_file_in_a_package_has_a_dotted_name(tmp_path: Path) -> None:
    (tmp_path / "shop" / "api").mkdir(parents=True)
    for folder in ("shop", "shop/api"):
        (tmp_path / folder / "__init__.py").touch()
    assert module_of(str(tmp_path / "shop" / "api" / "views.py")) == (str(tmp_path), "shop.api.views")
    assert module_of(str(tmp_path / "one.py")) == (str(tmp_path), "one")


def test_coroutines_are_awaited_and_exit_zero_is_a_good_end(tmp_path: Path) -> None:
    file = tmp_path / "a_module_of_this_test.py"
    file.write_text("import sys\n\nasync def waits(n):\n    return n + 1\n\ndef ends():\n    sys.exit(0)\n")
    assert call(str(file), "waits", [1], {}) == 2
    assert call(str(file), "ends", [], {}) is None


def test_generated_pieces_are_cut_out_of_any_value() -> None:
    cutter = Cutter(Windows((range(10_000, 20_000),)), constants={"10007"})
    assert cutter.cut("order 10005 for 10007, 5 times").pieces == ("10005",)
    assert cutter.cut({"id": 10_005, "qty": 5, "key": str(UUID(int=7))}).pieces == ("10005", str(UUID(int=7)))
    assert cutter.cut(10_005).shape == cutter.cut(10_006).shape != cutter.cut(5).shape
    assert cutter.cut(Decimal("9.10")).shape == cutter.cut(Decimal("9.1")).shape
    assert cutter.cut("2026-11-26T00:43:36.123456+00:00").pieces == ("2026-11-26T00:43:36.123456+00:00",)
    assert [is_coarse(text) for text in ("00:43:36", "at 2026-11-26 00:43:36.123456Z", "no time")] == [
        True,
        False,
        None,
    ]
