"""The judge, on outcomes written by hand."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import pytest

from bankrun.trials.judging.judge import BROKEN, ERROR, NEEDS_RETRY, SERIAL, Finding, Judge, judge_invariant
from bankrun.trials.judging.outcomes import Ending, Outcome, Place
from bankrun.trials.judging.values import Windows
from bankrun.trials.judging.yardstick import NotTheSame, Yardstick, learn

WINDOWS = Windows((range(10_000, 20_000), range(20_000, 30_000)))
EMPTY = Outcome({}, {})


def stock(left: int, a: Ending | None = None, b: Ending | None = None) -> Outcome:
    return Outcome({"stock": [{"id": 1, "left": left}]}, {"A": a or Ending(), "B": b or Ending()})


def judge_of(serial: dict[tuple[str, ...], Outcome], stick: Yardstick | None = None) -> Judge:
    full = {order: one for order, one in serial.items() if len(order) == 2}
    return Judge(stick or Yardstick(), full, lambda order: serial[order], {"stock": ["id"], "account": ["id"]})


SERIAL_STOCK = {("A", "B"): stock(8), ("B", "A"): stock(8)}


def test_a_serial_outcome_is_serial() -> None:
    assert judge_of(SERIAL_STOCK).judge(stock(8)).kind == SERIAL


def test_a_lost_update_is_broken_and_the_sentence_says_by_how_much() -> None:
    finding = judge_of(SERIAL_STOCK).judge(stock(9))
    assert finding == Finding(BROKEN, (), "stock.left is 9; either serial order gives 8")


def test_a_table_of_several_rows_says_which() -> None:
    def accounts(one: int) -> Outcome:
        return Outcome({"account": [{"id": 1, "balance": one}, {"id": 2, "balance": 110}]}, {"A": Ending()})

    finding = judge_of({("A", "B"): accounts(80), ("B", "A"): accounts(70)}).judge(accounts(90))
    assert finding.difference == "account.balance of id 1 is 90; the serial orders give 80 and 70"


def test_rows_that_no_serial_order_has_are_counted() -> None:
    def bookings(count: int) -> Outcome:
        return Outcome({"booking": [{"room": 7}] * count}, {})

    finding = judge_of({("A", "B"): bookings(1), ("B", "A"): bookings(1)}).judge(bookings(2))
    assert finding.difference == "booking has 2 rows; either serial order gives 1"


def test_results_that_go_together_in_no_order_are_broken() -> None:
    sold, out = Ending(result="sold"), Ending(result="sold out")
    serial = {("A", "B"): stock(0, sold, out), ("B", "A"): stock(0, out, sold)}
    finding = judge_of(serial).judge(stock(0, sold, sold))
    assert finding.kind == BROKEN
    assert finding.difference == (
        "A returns 'sold' and B returns 'sold'; "
        "serially A returns 'sold' and B returns 'sold out', or A returns 'sold out' and B returns 'sold'"
    )


def test_rows_that_go_together_in_no_order_are_said_together() -> None:
    def doctors(ann: bool, bob: bool) -> Outcome:
        return Outcome({"doctor": [{"name": "ann", "on_call": ann}, {"name": "bob", "on_call": bob}]}, {})

    serial = {("A", "B"): doctors(False, True), ("B", "A"): doctors(True, False)}
    judge = Judge(Yardstick(), serial, lambda order: serial[order], {"doctor": ["name"]})
    assert judge.judge(doctors(False, False)).difference == (
        "doctor.on_call of name 'ann' is false and doctor.on_call of name 'bob' is false; "
        "the serial orders give false and true, or true and false"
    )


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03"])
def test_a_conflict_that_is_serial_when_run_again_needs_a_retry(sqlstate: str) -> None:
    asked: list[Sequence[str]] = []

    def again(names: Sequence[str]) -> Outcome:
        asked.append(names)
        return stock(8)

    failed = Ending(error="OperationalError", sqlstate=sqlstate)
    finding = judge_of(SERIAL_STOCK).judge(stock(9, b=failed), again)
    assert (finding.kind, finding.sqlstates, asked) == (NEEDS_RETRY, (sqlstate,), [["B"]])


def test_a_conflict_that_is_not_serial_when_run_again_is_broken() -> None:
    failed = Ending(error="OperationalError", sqlstate="40001")
    finding = judge_of(SERIAL_STOCK).judge(stock(9, b=failed), lambda _: stock(7))
    assert finding.kind == BROKEN
    assert "run again" in finding.difference
    assert "stock.left is 7" in finding.difference


def test_a_conflict_that_the_program_handled_itself_is_none() -> None:
    assert judge_of(SERIAL_STOCK).judge(stock(8, b=Ending(sqlstate="40001"))).kind == SERIAL


def test_a_violated_constraint_with_right_data_is_an_error() -> None:
    def emails(a: Ending, b: Ending | None) -> Outcome:
        return Outcome({"person": [{"email": "x"}]}, {"A": a} if b is None else {"A": a, "B": b})

    ok, there = Ending(), Ending(result="exists")
    serial = {
        ("A", "B"): emails(ok, there),
        ("B", "A"): emails(there, ok),
        ("A",): emails(ok, None),
    }
    failed = Ending(error="UniqueViolation", sqlstate="23505")
    finding = judge_of(serial).judge(emails(ok, failed))
    assert finding.kind == ERROR
    assert finding.difference == "the data is right; 23505 reaches the caller, which no serial order has"


def test_a_violated_constraint_that_a_serial_order_has_too_is_serial() -> None:
    failed = Ending(error="UniqueViolation", sqlstate="23505")
    serial = {("A", "B"): stock(8, b=failed), ("B", "A"): stock(8, a=failed)}
    assert judge_of(serial).judge(stock(8, a=failed)).kind == SERIAL
    assert judge_of({**serial, ("A",): stock(1), ("B",): stock(1), (): stock(0)}).judge(
        stock(8, failed, failed)
    ).kind == (BROKEN)


def test_another_error_is_broken() -> None:
    finding = judge_of(SERIAL_STOCK).judge(stock(8, b=Ending(error="ValueError", message="no")))
    assert finding == Finding(BROKEN, (), "B fails with ValueError; serially it ends well")


def test_an_invariant_is_violated_by_each_row_it_returns() -> None:
    assert judge_invariant([]).kind == SERIAL
    assert judge_invariant([{"room": 7}, {"room": 8}]).difference == "the invariant is violated by 2: room 7"


# What is generated.


def orders(first: int, second: int, code: str = "c", *, by: tuple[str, str] = ("ann", "bob")) -> Outcome:
    return Outcome(
        {
            "orders": [{"id": first, "by": by[0], "code": code}, {"id": second, "by": by[1], "code": code}],
            "items": [{"id": second + 10_000, "order_id": first}, {"id": first + 10_000, "order_id": second}],
        },
        {"A": Ending(result=first, output=f"order {first} made"), "B": Ending(result=second)},
    )


def learn_orders(**more: Outcome) -> Yardstick:
    return learn({("A", "B"): (orders(10_001, 10_002), orders(10_501, 10_502))}, EMPTY, WINDOWS)


def test_ids_are_matched_wherever_they_stand() -> None:
    stick = learn_orders()
    assert not stick.ignored
    assert stick.equal(orders(10_002, 10_001), orders(10_001, 10_002))


def test_swapped_references_are_not_equal() -> None:
    stick, right = learn_orders(), orders(10_001, 10_002)
    swapped = Outcome(right.tables, {**right.endings, "A": right.endings["B"], "B": right.endings["A"]})
    assert not stick.equal(swapped, right)
    crossed = [{**row, "order_id": 20_003 - row["order_id"]} for row in right.tables["items"]]
    assert stick.equal(Outcome({**right.tables, "items": crossed}, right.endings), right)  # the items are alike
    named = [{**row, "of": "ann" if row["order_id"] == 10_001 else "bob"} for row in right.tables["items"]]
    wrong = [{**row, "order_id": 20_003 - row["order_id"]} for row in named]
    assert not stick.equal(Outcome({**right.tables, "items": wrong}), Outcome({**right.tables, "items": named}))


def test_a_wrong_line_of_output_is_seen_beside_an_id() -> None:
    stick, right = learn_orders(), orders(10_001, 10_002)
    refused = Ending(result=10_001, output="order 10001 refused")
    assert not stick.equal(Outcome(right.tables, {**right.endings, "A": refused}), right)


def test_a_number_that_is_the_same_in_both_runs_is_never_matched() -> None:
    def numbered(number: int, at: int) -> Outcome:
        return Outcome({"invoice": [{"id": at, "number": number}]}, {})

    stick = learn({("A",): (numbered(10_007, 10_001), numbered(10_007, 10_501))}, EMPTY, WINDOWS)
    assert stick.equal(numbered(10_007, 10_002), numbered(10_007, 10_001))
    assert not stick.equal(numbered(10_008, 10_002), numbered(10_007, 10_001))


def test_uuids_that_the_program_was_given_are_constants() -> None:
    given = [str(uuid.uuid4()) for _ in range(2)]

    def transfers(first: str, second: str, amounts: tuple[int, int]) -> Outcome:
        rows = [
            {"key": key, "amount": amount, "made_by": str(uuid.uuid4())}
            for key, amount in zip((first, second), amounts, strict=True)
        ]
        return Outcome({"transfer": rows}, {})

    stick = learn({("A",): (transfers(*given, (5, 7)), transfers(*given, (5, 7)))}, EMPTY, WINDOWS)
    assert stick.generated == {Place("row", "transfer", "made_by")}
    assert stick.equal(transfers(*given, (5, 7)), transfers(*given, (5, 7)))
    assert not stick.equal(transfers(*given, (7, 5)), transfers(*given, (5, 7)))


def test_what_is_never_the_same_is_not_compared_and_named() -> None:
    def coupon(code: str, at: int) -> Outcome:
        return Outcome({"orders": [{"id": at, "code": code, "total": 5}]}, {})

    stick = learn({("A",): (coupon("12", 10_001), coupon("77", 10_501))}, EMPTY, WINDOWS)
    assert [str(place) for place in stick.ignored] == ["orders.code"]
    assert not stick.equal(Outcome({"orders": [{"id": 10_001, "code": "5", "total": 6}]}, {}), coupon("5", 10_001))


def test_coarse_times_are_not_compared_since_two_may_be_equal_by_chance() -> None:
    def stamped(first: str, second: str) -> Outcome:
        return Outcome({"t": [{"at": first}, {"at": second}]}, {})

    same = "2026-11-26T00:00:01+00:00"
    stick = learn(
        {("A",): (stamped(same, same), stamped("2026-11-26T00:00:02+00:00", "2026-11-26T00:00:02+00:00"))},
        EMPTY,
        WINDOWS,
    )
    assert stick.ignored == {Place("row", "t", "at")}
    fine = ("2026-11-26T00:00:01.123456+00:00", "2026-11-26T00:00:02.123457+00:00")
    stick = learn(
        {("A",): (stamped(*fine), stamped(fine[0].replace("01", "03"), fine[1].replace("02", "04")))}, EMPTY, WINDOWS
    )
    assert not stick.ignored
    assert not stick.equal(stamped(fine[0], fine[0]), stamped(*fine))


def test_an_order_that_never_ends_the_same_way_is_said() -> None:
    pair = (Outcome({"t": [{"a": 1}]}, {}), Outcome({"t": [{"a": 1}, {"a": 2}]}, {}))
    with pytest.raises(NotTheSame, match="does not end the same way twice: t has 1 rows, then 2"):
        learn({("A", "B"): pair}, EMPTY, WINDOWS)
