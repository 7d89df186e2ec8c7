"""The space-time diagram of a lost posting: who read, wrote and committed when, and who wrote over whom."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from datetime import datetime

from bank.audit import PostingTold
from bankrun.render.svg import Picture

LABELS = 128
WIDTH = 820
LANE = 78
BAR = 18


def space_time(name: str, scene: Sequence[PostingTold], fate: str = "lost") -> str:
    """Return a lost posting as a picture: a lane for each thread, a bar from read to commit for each posting.

    The first posting of the scene is the lost one, the second the one that overwrote it. ``fate`` is the word for what
    became of the first: while a run goes on, a later transfer that had read it may yet find one that is written over.
    """
    lost, culprit = scene[:2]
    begin = min(posting.read_at for posting in scene)
    span_ms = max(_milliseconds(begin, _end(posting)) for posting in scene) or 1.0
    lanes = sorted({_lane(posting) for posting in scene})
    picture = Picture(
        name,
        f"A lost posting on account {lost.account}",
        f"{_who(lost)} read {lost.before:,} and wrote {lost.after:,}. {_who(culprit)} read "
        f"{culprit.before:,} and wrote {culprit.after:,}: the {lost.delta:+,} of the first is gone.",
        width=WIDTH,
    )

    def x(at: datetime) -> float:
        return LABELS + (WIDTH - LABELS - 20) * _milliseconds(begin, at) / span_ms

    def y(posting: PostingTold) -> float:
        return 30.0 + LANE * lanes.index(_lane(posting))

    for number, lane in enumerate(lanes):
        middle = 30.0 + LANE * number + BAR / 2
        picture.add("line", "lane", x1=LABELS, x2=WIDTH - 10, y1=middle, y2=middle)
        picture.add("text", "strong", lane[0], x=4, y=middle - 2)
        picture.add("text", "small", f"thread {lane[1]}", x=4, y=middle + 13)
    for posting in (*scene[2:], lost, culprit):
        kind = "lost" if posting is lost else "culprit" if posting is culprit else "other"
        _bar(picture, posting, kind, fate, x, y(posting))
    down = y(culprit) >= y(lost)
    picture.arrow(
        (x(_end(lost)), y(lost) + (BAR if down else 0)),
        (x(_written(culprit)), y(culprit) + (0 if down else BAR)),
    )
    bottom = 30.0 + LANE * len(lanes)
    for step in range(5):
        at = span_ms * step / 4
        picture.add(
            "text",
            "small",
            f"{at:.2f} ms",
            x=LABELS + (WIDTH - LABELS - 20) * step / 4,
            y=bottom + 8,
            text_anchor="start" if step == 0 else "end" if step == 4 else "middle",
        )
    legend = "dashed: the lost posting · mark in a bar: its write · arrow: to the posting that wrote over it"
    picture.add("text", "small", legend, x=4, y=bottom + 30)
    return picture.svg(bottom + 40)


def _bar(
    picture: Picture, posting: PostingTold, kind: str, fate: str, x: Callable[[datetime], float], top: float
) -> None:
    begin, end = x(posting.read_at), x(_end(posting))
    width = max(3.0, end - begin)
    bar = picture.add("rect", kind, x=begin, y=top, width=width, height=BAR, rx=3)
    ET.SubElement(bar, "title").text = (
        f"entry {posting.entry}, transfer {posting.transfer[:8]}: read {posting.before:,}, "
        f"wrote {posting.after:,} ({posting.delta:+,})"
    )
    written = x(_written(posting))
    picture.add("line", "write", x1=written, x2=written, y1=top, y2=top + BAR)
    if kind == "other":
        return
    label = f"reads {posting.before:,}, writes {posting.after:,} ({posting.delta:+,})"
    lost = kind == "lost"
    label += f"  {fate}" if lost else ""
    # The text begins with its bar; where it might not fit, it ends with the picture. Bold letters have up to 8 units.
    fits = begin + 8 * len(label) <= WIDTH - 10
    at, anchor = (begin, "start") if fits else (WIDTH - 10.0, "end")
    picture.add("text", "on-lost strong" if lost else "strong", label, x=at, y=top - 6, text_anchor=anchor)
    picture.add("text", "small", f"entry {posting.entry}", x=at, y=top + BAR + 14, text_anchor=anchor)


def _lane(posting: PostingTold) -> tuple[str, str]:
    return str(posting.instance), str(posting.thread).rpartition("_")[2]


def _who(posting: PostingTold) -> str:
    instance, thread = _lane(posting)
    return f"{instance}, thread {thread},"


def _written(posting: PostingTold) -> datetime:
    return posting.written_at or posting.read_at


def _end(posting: PostingTold) -> datetime:
    return max(posting.committed_at or posting.read_at, _written(posting))


def _milliseconds(begin: datetime, end: datetime) -> float:
    return (end - begin).total_seconds() * 1000
