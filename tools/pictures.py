# ruff: noqa: INP001, T201 - a script, which prints
"""Writes docs/where-the-lock-lives.svg: three frames of the page's recording, in which a posting is lost.

``make pictures`` runs it. The page's own script draws, in a browser that reaches nothing but the files of the page.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from playwright.sync_api import Page, Route, sync_playwright

from bankrun.page.index import STATIC
from bankrun.render.svg import THEME

TARGET = Path(__file__).parent.parent / "docs" / "where-the-lock-lives.svg"
HOST = "http://page.invalid"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SVG = "http://www.w3.org/2000/svg"
FRAME, GAP, HEAD, EDGE = 330, 22, 62, 12
SIZE_MAX = 60_000
MARKS = """
.paper { fill: var(--paper) } text.head { font-size: 15px } text.head.strong { font-weight: 650 }
.account.watched { stroke: var(--ink); stroke-width: 2 } .account.hit.watched { stroke: var(--broken) }
.thread.watched { stroke: var(--ink); stroke-width: 3 }
"""
STRATEGY, TOPOLOGY = "thread-lock", "3x8"


def main() -> None:
    """Write the picture."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sys.exit(f"pictures are drawn by a browser: install one of {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        drawn = _draw(browser.new_page())
        browser.close()
    text = _join(drawn)
    if len(text.encode()) > SIZE_MAX:
        sys.exit(f"the picture has {len(text.encode()):,} bytes, and may have {SIZE_MAX:,}")
    TARGET.write_text(text, encoding="utf-8")
    print(f"{TARGET}: {len(text.encode()) / 1e3:,.0f} kB")


def _draw(page: Page) -> dict:
    def answer(route: Route) -> None:
        name = route.request.url.removeprefix(HOST).lstrip("/")
        if not name:
            style = (STATIC / "page.css").read_text(encoding="utf-8")
            html = f"<!doctype html><style>{style}</style><div id=stages style='display:block;width:{FRAME}px'></div>"
            route.fulfill(body=html, content_type="text/html")
        else:
            kind = "text/javascript" if name.endswith(".js") else "application/json"
            route.fulfill(body=(STATIC / Path(name).name).read_text(encoding="utf-8"), content_type=kind)

    page.route("**/*", answer)
    page.goto(HOST + "/")
    script = (Path(__file__).parent / "pictures.js").read_text(encoding="utf-8").partition("\n")[2]
    return page.evaluate(script, [STRATEGY, TOPOLOGY])


def _join(drawn: dict) -> str:
    """Return the frames beside each other, with what each shows above it."""
    ET.register_namespace("", SVG)
    frames = [ET.fromstring(frame["svg"]) for frame in drawn["frames"]]  # noqa: S314 - drawn by our own script
    high = max(float(frame.get("height", "0")) for frame in frames)
    width, height = 3 * FRAME + 2 * GAP + 2 * EDGE, HEAD + high + 34 + EDGE
    said = " ".join(" ".join(frame["lines"]) for frame in drawn["frames"])
    root = ET.Element(
        f"{{{SVG}}}svg",
        {
            "viewBox": f"0 0 {width} {height:g}",
            "width": str(width),
            "height": f"{height:g}",
            "role": "img",
            "aria-labelledby": "t d",
        },
    )
    ET.SubElement(root, f"{{{SVG}}}title", {"id": "t"}).text = f"A posting is lost with {STRATEGY} on three workers"
    ET.SubElement(root, f"{{{SVG}}}desc", {"id": "d"}).text = said
    ET.SubElement(root, f"{{{SVG}}}style").text = _style()
    ET.SubElement(root, f"{{{SVG}}}rect", {"class": "paper", "width": "100%", "height": "100%"})
    for number, (frame, told) in enumerate(zip(frames, drawn["frames"], strict=True)):
        x = EDGE + number * (FRAME + GAP)
        for line, text in enumerate(told["lines"]):
            kind = "strong broken-text" if number == 2 and line else "strong" if line == 0 else ""
            shown = f"{number + 1}. {text}" if line == 0 else text
            place = {"class": f"head {kind}", "x": str(x), "y": str(26 + 20 * line)}
            ET.SubElement(root, f"{{{SVG}}}text", place).text = shown
        group = ET.SubElement(root, f"{{{SVG}}}g", {"transform": f"translate({x},{HEAD})"})
        group.extend(_strip(frame))
    foot = {"class": "small", "x": str(EDGE), "y": f"{height - 16:g}"}
    ET.SubElement(root, f"{{{SVG}}}text", foot).text = (
        f"{STRATEGY} on {TOPOLOGY}, recorded {drawn['recorded']}: {drawn['cell']} were lost like this. "
        "Filled: the thread moves money; dashed line: has read, solid: has written."
    )
    return ET.tostring(root, encoding="unicode") + "\n"


def _strip(frame: ET.Element) -> list[ET.Element]:
    """Return what is seen of a frame."""
    for parent in frame.iter():
        for child in list(parent):
            if "off" in child.get("class", "").split() or (child.tag.endswith("}g") and not len(child)):
                parent.remove(child)
    return list(frame)


def _style() -> str:
    """Return the colours, and of the page's style what the picture needs."""
    page = (STATIC / "page.css").read_text(encoding="utf-8")
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", page.partition("@media (max-width")[0])
    wanted = (
        ".stage text",
        ".block",
        ".box",
        ".host",
        ".account",
        ".thread",
        ".pause",
        ".wire",
        ".lock",
        ".chip",
        ".callout",
        ".transfer",
    )
    kept = [
        f"{selector.strip().replace('.stage ', '')}{{{body.strip()}}}"
        for selector, body in rules
        if selector.strip().startswith(wanted)
    ]
    return THEME + "".join(kept) + MARKS


if __name__ == "__main__":
    main()
