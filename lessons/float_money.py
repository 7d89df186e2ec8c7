"""A float holds binary fractions, and 0.10 is not one: sums are slightly wrong, and depend on the order.

Balances are whole numbers of the smallest unit, cents; they are exact, and comparing them means something.
"""

from fractions import Fraction

from stage import Outcome, Stage
from telling import Lesson, perform


def ten_dimes(stage: Stage) -> Outcome:
    """John sends Jane 0.10 ten times; each has 1.00."""
    john, jane = 1.00, 1.00
    for _ in range(10):
        john, jane = john - 0.10, jane + 0.10
    stage.say(f"0.10 is {Fraction(0.10).limit_denominator(10)} plus {float(Fraction(0.10) - Fraction(1, 10)):.1e}")
    stage.say(f"John has {john!r}, and may he spend his last cent? {john >= 0.00}")
    return Outcome(john != 0.0 or jane != 2.0, f"John {john!r}, Jane {jane!r}")


def order_of_adding(stage: Stage) -> Outcome:
    """The same three amounts, added by two threads in two orders."""
    one, other = (0.10 + 0.20) + 0.30, 0.10 + (0.20 + 0.30)
    stage.say(f"(0.10 + 0.20) + 0.30 is {one!r}")
    stage.say(f"0.10 + (0.20 + 0.30) is {other!r}")
    return Outcome(one != other, "an audit that sums in another order finds another total")


def a_cent_too_many(stage: Stage) -> Outcome:
    """A cent comes into a bank that holds 90,071,992,547,409.92 in cents, as a float."""
    total = 9_007_199_254_740_992.0
    after = total + 1
    stage.say(f"before {total:.0f}, after {after:.0f}")
    return Outcome(after == total, "the cent is gone")


def in_cents(stage: Stage) -> Outcome:
    """All of it again in cents, as int."""
    john, jane = 100, 100
    for _ in range(10):
        john, jane = john - 10, jane + 10
    stage.say(f"John has {john}, Jane {jane}")
    stage.say(f"(10 + 20) + 30 is {(10 + 20) + 30}, and 10 + (20 + 30) is {10 + (20 + 30)}")
    total = 9_007_199_254_740_992
    stage.say(f"before {total}, after {total + 1}")
    exact = (john, jane) == (0, 200) and (10 + 20) + 30 == 10 + (20 + 30) and total + 1 > total
    return Outcome(not exact, f"John {john}, Jane {jane}, and no cent is lost")


LESSON = Lesson(
    name="float-money",
    idea=__doc__,
    unsafe=(ten_dimes, order_of_adding, a_cent_too_many),
    safe=(in_cents,),
    question="Decimal is exact for 0.10 too. What do you still have to decide before you divide 10.00 by three?",
    in_earnest="bank/postgres/models.py: balances are BIGINT; bank/orders.py refuses what JSON could not carry.",
)

if __name__ == "__main__":
    perform(LESSON)
