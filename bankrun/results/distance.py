"""How far instances are from Postgres: the round-trip time, in milliseconds, of all or of each."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from bank.errors import CannotStart

MS_MAX = 1_000.0
_ONE = re.compile(r"\s*(?:(w[1-9]\d{0,3})\s*=)?\s*(\d{1,6}(?:\.\d{1,3})?)\s*")


@dataclass(frozen=True, slots=True, order=True)
class Distance:
    """The round-trip time to Postgres, in milliseconds: ``ms``, unless an instance has one of its own."""

    ms: float = 0.0
    own: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for ms in (self.ms, *(ms for _, ms in self.own)):
            if not (math.isfinite(ms) and 0 <= ms <= MS_MAX):
                raise CannotStart(f"distance-ms={ms:g}: a round trip takes between 0 and {MS_MAX:g} ms")

    @classmethod
    def parse(cls, text: str) -> Distance:
        """Read ``5``, or ``w1=0,w2=40``: those that are not named are as near as can be. Raises CannotStart."""
        found = [_ONE.fullmatch(part) for part in text.split(",")]
        if len(found) == 1 and found[0] is not None and found[0][1] is None:
            return cls(float(found[0][2]))
        own: dict[str, float] = {}
        for one in found:
            if one is None or one[1] is None or one[1] in own:
                raise CannotStart(f"{text!r} is no distance: write milliseconds, as in 5, or w1=0,w2=40")
            own[one[1]] = float(one[2])
        return cls(own=tuple(sorted(own.items())))

    def of(self, instance: str) -> float:
        """Return an instance's round-trip time, in milliseconds."""
        return dict(self.own).get(instance, self.ms)

    def names(self) -> Sequence[str]:
        """Return the instances that have a time of their own."""
        return [name for name, _ in self.own]

    @property
    def is_near(self) -> bool:
        """Whether nothing is delayed."""
        return not self.ms and not any(ms for _, ms in self.own)

    def __str__(self) -> str:
        """Return what ``parse`` reads."""
        return ",".join(f"{name}={ms:g}" for name, ms in self.own) or f"{self.ms:g}"


NEAR = Distance()
