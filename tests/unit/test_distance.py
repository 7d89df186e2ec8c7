"""How far instances are, as people write it."""

from __future__ import annotations

import pytest

from bank.errors import CannotStart
from bankrun.cli.compare import _spread
from bankrun.results.distance import Distance
from bankrun.results.topology import Topology


@pytest.mark.parametrize(
    ("text", "first", "second"), [("0", 0, 0), ("5", 5, 5), (" 0.25 ", 0.25, 0.25), ("w2=40, w1=1.5", 1.5, 40)]
)
def test_what_is_written_is_read_and_written_again(text: str, first: float, second: float) -> None:
    distance = Distance.parse(text)
    assert (distance.of("w1"), distance.of("w2")) == (first, second)
    assert Distance.parse(str(distance)) == distance
    assert Topology.parse(str(Topology(2, 4, distance))) == Topology(2, 4, distance)


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "nan", "1e3", "1001", "5,6", "w1=5,6", "w1=1,w1=2", "w0=1", "w1=", "5 ms"]
)
def test_what_is_no_distance_is_refused(text: str) -> None:
    with pytest.raises(CannotStart):
        Distance.parse(text)


def test_who_is_not_there_cannot_be_far_away() -> None:
    with pytest.raises(CannotStart, match="there is no w3"):
        Topology(2, 4, Distance.parse("w3=5"))


def test_every_topology_is_put_at_every_distance() -> None:
    found = _spread(["1x4", "2x4"], ["0", "30"])
    assert [str(one) for one in found] == ["1x4", "2x4", "1x4@30ms", "2x4@30ms"]
    assert [str(one) for one in _spread(["2x4@30ms", "2x4"], [])] == ["2x4@30ms", "2x4"]
    with pytest.raises(CannotStart, match="given twice"):
        _spread(["2x4@30ms"], ["5"])
