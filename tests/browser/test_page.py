"""The live page, in a browser: a comparison started by clicking, watched, disturbed, and read off the page."""

from __future__ import annotations

import re
import signal

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.contrast import CONTRAST
from tests.browser.page_server import Server, visiting

pytestmark = [
    pytest.mark.timeout(300),  # a browser, servers and workers, all at once on however few cores
    pytest.mark.xdist_group("browser"),  # one server for all of them, and some look at what others have left there
]


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
SOCKET = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"


@pytest.mark.parametrize(
    ("path", "more", "granted"),
    [
        ("/", {}, 200),
        ("/live", UPGRADE, 101),
        (SOCKET, UPGRADE, 101),
        ("/step", {}, 200),
        ("/saved/1", {}, 200),
        ("/saved/1/result", {}, 200),
    ],
)
def test_only_its_own_pages_may_talk_to_it(server: Server, path: str, more: dict[str, str], granted: int) -> None:
    own = f"127.0.0.1:{server.port}"
    assert server.status({"Host": own, **more}, path) == granted
    assert server.status({"Host": f"localhost:{server.port}", **more}, path) == granted
    assert server.status({"Host": own, "Origin": f"http://{own}", **more}, path) == granted
    for headers in (
        {"Host": "evil.example"},
        {"Host": f"127.0.0.1.evil.example:{server.port}"},
        {"Host": own, "Origin": "http://evil.example"},
        {"Host": own, "Origin": "null"},
        {"Host": own, "Origin": "http://127.0.0.1:1"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ):
        assert server.status({**headers, **more}, path) == 403, headers


def test_a_plan_is_started_by_a_post_of_its_own_page_only(server: Server) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}):
        assert server.status(headers, "/start", method="POST") == 403, headers
    assert server.status({}, "/start?strategies=none") == 405
    assert server.status({}, "/start", method="POST", body=b"topologies=3by8") == 400
    assert server.status({}, "/start", method="POST", body=b"strategies=other:Mine") == 400
    assert server.status({}, "/start", method="POST", body=b"topologies=" + b"1x1," * 2000) == 400


def fill(page: Page, label: str, value: str) -> None:
    page.get_by_label(label, exact=True).fill(value)


def cards(page: Page) -> dict[str, str]:
    """Read the verdicts off the cards."""
    found = page.locator(".card").evaluate_all(
        """cards => cards.map(
            card => ["strategy", "topology", "verdict"].map(name => card.querySelector("." + name).innerText)
        )"""
    )
    return {f"{strategy} {topology}": verdict.partition(" ")[2] for strategy, topology, verdict in found}


HEADLINE = {
    "none 1x8": "broken",
    "none 3x8": "broken",
    "thread-lock 1x8": "safe",
    "thread-lock 3x8": "broken",
    "row-lock 1x8": "safe",
    "row-lock 3x8": "safe",
}


def test_before_anything_has_run_a_recording_is_shown_and_can_be_played(browser: Browser, server: Server) -> None:
    with visiting(browser, server) as page:
        expect(page.get_by_text("A recording of 20")).to_be_visible()
        expect(page.get_by_role("status").first).to_have_text("Nothing runs.")
        assert cards(page) == HEADLINE
        one, three = page.locator("figure.stage").all()
        expect(one).to_contain_text("safe: nothing lost")
        expect(three).to_contain_text(re.compile(r"broken: [\d,]+ of 4,000 postings lost"))
        # Where the lock lives: in the one box, and in each of three; and what that does, in the picture itself.
        assert (one.locator(".box").count(), one.locator(".lock").count()) == (1, 1)
        assert (three.locator(".box").count(), three.locator(".lock").count()) == (3, 3)
        assert three.locator(".lock.held").count() >= 2  # each of the two has a lock of its own
        expect(three.locator("svg")).to_contain_text(re.compile("w. wrote .* over it.* is gone"))
        page.get_by_role("button", name="Play the recording").click()
        expect(page.get_by_text("Slow motion")).to_be_visible()
        expect(page.get_by_role("button", name="none ✗ ✗")).to_have_attribute("aria-pressed", "true")
        expect(page.locator("circle.transfer").first).to_be_visible()
        expect(page.locator("line.lost").first).to_be_visible()
        page.get_by_role("button", name="Stop playing").click()
        page.get_by_role("button", name="row-lock ✓ ✓").click()
        expect(three.locator(".account + text ~ .lock").first).to_be_visible()
        expect(three).to_contain_text("safe: nothing lost")
        page.get_by_role("button", name="thread-lock 3x8 ✗").click()
        expect(page.get_by_role("dialog")).to_contain_text("no thread lock reaches from one to the other")
        expect(page.get_by_role("dialog").locator("svg.picture")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).not_to_be_visible()


def test_who_wants_no_motion_sees_stills_and_who_has_no_script_a_table(browser: Browser, server: Server) -> None:
    with visiting(browser, server, reduced_motion="reduce") as page:
        page.get_by_role("button", name="Play the recording").click()
        expect(page.get_by_role("button", name="none ✗ ✗")).to_have_attribute("aria-pressed", "true")
        drawn = page.locator("#stages").inner_html()
        page.wait_for_timeout(600)
        assert page.locator("#stages").inner_html() == drawn
        expect(page.get_by_role("button", name="thread-lock ✓ ✗")).to_have_attribute("aria-pressed", "true")
    with visiting(browser, server, java_script_enabled=False) as page:
        rows = page.get_by_role("row").all_inner_texts()
        assert [row.split("\t")[:3] for row in rows[1:]] == [[*name.split(), verdict] for name, verdict in SORTED]
        expect(page.get_by_role("button", name="Start")).not_to_be_visible()


SORTED = sorted(HEADLINE.items(), key=lambda item: item[0].split()[1])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_a_projector_and_has_contrast(browser: Browser, server: Server, scheme: str) -> None:
    with visiting(browser, server, color_scheme=scheme, viewport={"width": 390, "height": 844}) as page:
        expect(page.get_by_text("A recording of 20")).to_be_visible()
        for size in ("normal type", "large type", "type for a projector"):
            page.get_by_role("button", name=size).click()
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, size
        page.reload()
        expect(page.get_by_role("button", name="type for a projector")).to_have_attribute("aria-pressed", "true")
        assert (
            page.evaluate(CONTRAST, "main :is(h1, h2, p, span, b, strong, label, small, button:not(:disabled))") >= 4.5
        )


def test_a_link_opens_its_plan_and_starts_nothing_and_a_reload_keeps_what_is_typed(
    browser: Browser, server: Server
) -> None:
    link = "/?strategies=row-lock,serializable&topologies=2x2&transfers=300&think_ms=1.5&seed=7"
    with visiting(browser, server, link) as page:
        expect(page.get_by_role("status").first).to_have_text("Nothing runs.")
        chosen = page.locator("[name=strategies]:checked")
        assert [box.input_value() for box in chosen.all()] == ["row-lock", "serializable"]
        expect(page.get_by_label("topologies", exact=True)).to_have_value("2x2")
        expect(page.get_by_label("think ms", exact=True)).to_have_value("1.5")
        expect(page.get_by_label("accounts", exact=True)).to_have_value("8")
        fill(page, "accounts", "5")
        page.get_by_role("checkbox", name="serializable", exact=True).uncheck()
        page.reload()
        assert [box.input_value() for box in chosen.all()] == ["row-lock"]
        expect(page.get_by_label("accounts", exact=True)).to_have_value("5")
        expect(page.get_by_label("seed", exact=True)).to_have_value("7")
        assert "strategies=row-lock&topologies=2x2" in page.url
    with visiting(browser, server, "/?topologies=3by8&think_ms=%3Cscript%3Ealert(1)%3C%2Fscript%3E") as page:
        expect(page.get_by_role("alert").filter(has_text="'3by8' is not a topology")).to_be_visible()
        expect(page.get_by_role("status").first).to_have_text("Nothing runs.")


def test_a_wrong_load_is_refused_in_a_sentence_and_nothing_starts(browser: Browser, server: Server) -> None:
    with visiting(browser, server, going=True) as page:  # a browser writes every answer of 400 to its console
        fill(page, "topologies", "3by8")
        page.get_by_role("button", name="Start").click()
        expect(page.get_by_role("alert").filter(has_text="'3by8' is not a topology")).to_be_visible()
        expect(page.get_by_role("button", name="Start")).to_be_enabled()


NOTE_WHAT_IS_DRAWN = """() => {
    window.drawn = new Set();
    window.told = new Set();
    new MutationObserver((changes) => {
        for (const { target, type } of changes) {
            if (type === "attributes") window.drawn.add(target.getAttribute("class"));
            else if (target.tagName === "STRONG") window.told.add(target.textContent);
        }
    }).observe(document.getElementById("stages"), {
        subtree: true, childList: true, attributes: true, attributeFilter: ["class"],
    });
}"""


def test_a_comparison_is_started_by_a_click_watched_by_two_and_disturbed(browser: Browser, server: Server) -> None:
    with visiting(browser, server) as page, visiting(browser, server, color_scheme="dark") as other:
        expect(page.get_by_role("status").first).to_have_text("Nothing runs.")
        fill(page, "topologies", "2x4")
        fill(page, "transfers", "150")
        fill(page, "accounts", "4")
        fill(page, "think ms", "15")
        page.get_by_role("button", name="Start").click()
        expect(other.get_by_role("status").first).to_contain_text("none on 2x4")
        expect(other.get_by_role("button", name="Start")).to_be_disabled()
        assert len(cards(other)) == 4
        other.evaluate(NOTE_WHAT_IS_DRAWN)
        # A posting that is written over appears while it happens; a click shows how. The picture has it, too.
        written_over = other.get_by_role("button", name=re.compile("Account .* is gone"))
        written_over.first.click()
        told = other.get_by_role("dialog").locator("svg.picture text").filter(has_text="written over").first
        expect(told).to_be_visible()
        page.reload()
        expect(page.get_by_label("think ms", exact=True)).to_have_value("15")
        expect(page.get_by_role("status").first).to_contain_text("row-lock on 2x4")
        expect(page.locator(".card.broken")).to_have_count(2)
        expect(told).to_be_visible()  # many postings were written over since then
        other.get_by_role("button", name="Close").click()
        expect(told).not_to_be_visible()
        page.get_by_role("button", name="kill w2").click()
        expect(page.get_by_text("w2 is killed")).to_be_visible()
        for one in (page, other):
            expect(one.get_by_role("status").first).to_have_text("The comparison is finished.")
        expect(page.get_by_role("link", name="The whole report")).to_be_visible()
        found = {"none 2x4": "broken", "thread-lock 2x4": "broken", "row-lock 2x4": "safe", "mine:Mine 2x4": "broken"}
        assert cards(page) == cards(other) == found
        drawn, told = other.evaluate("[[...window.drawn], [...window.told]]")
        assert {"wire written", "wire lost", "thread waits", "thread works"} <= set(drawn)
        assert any(re.fullmatch(r"[0-9]+ of 150 transfers, [0-9,]+ written over so far", text) for text in told)
        page.get_by_role("button", name="row-lock 2x4").click()
        expect(page.get_by_role("dialog")).to_contain_text("The same transfers without a lock lost")
        page.get_by_role("button", name="Close").click()
        # A strategy of one's own stands where its claim says: in each worker.
        page.get_by_role("button", name="mine:Mine ✗").click()
        expect(page.locator("figure.stage:visible .caption")).to_contain_text("two workers, two locks")
        assert page.locator("figure.stage:visible .lock").count() == 2


def test_a_server_that_goes_is_missed_and_what_was_found_is_there_when_it_is_back(
    browser: Browser, server: Server
) -> None:
    with visiting(browser, server, going=True) as page:
        expect(page.get_by_role("link", name="The whole report")).to_be_visible()
        before = cards(page)
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        expect(page.get_by_text("The server does not answer.")).to_be_visible()
        server.start()
        expect(page.get_by_text("The server does not answer.")).not_to_be_visible()
        expect(page.get_by_role("status").first).to_have_text("Nothing runs.")
        assert cards(page) == before
        assert before["thread-lock 2x4"] == "broken"
        expect(page.locator("figure.stage line.lost").first).to_be_visible()  # the film is kept, too
    assert server.status({}, "/report") == 200


def test_an_automated_check_of_accessibility_finds_nothing_serious(browser: Browser, server: Server) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    phone = {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}}
    for path, options in (("/", {}), ("/", phone), ("/saved/1", {}), ("/saved/1", phone)):
        with visiting(browser, server, path, **options) as page:
            expect(page.locator("figure.stage svg, table.grid").first).to_be_visible()
            found = axe.Axe().run(page).response["violations"]
            assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


def test_an_interleaving_is_stepped_through_by_hand_and_survives_a_reload(browser: Browser, server: Server) -> None:
    with visiting(browser, server, "/step?at=other:Mine/two/same-pair/A") as page:
        expect(page.get_by_role("alert").filter(has_text="'other:Mine' is not one of the strategies")).to_be_visible()
    with visiting(browser, server, "/step?at=none/two/same-pair/AAABAB") as page:
        expect(page.get_by_text("bankrun replay none/two/same-pair/AAABAB", exact=True)).to_be_visible()
        page.get_by_role("button", name="B goes on").click()
        expect(page.get_by_text("bankrun replay none/two/same-pair/AAABABB", exact=True)).to_be_visible()
        expect(page).to_have_url(re.compile("AAABABB$"))  # the address follows the text
        page.reload()
        expect(page.get_by_role("button", name="B goes on")).to_be_disabled()  # it waits for A
        taken = "AAABABB"
        for name in "AABBB":
            page.get_by_role("button", name=f"{name} goes on").click()
            taken += name
            expect(page.get_by_text(f"bankrun replay none/two/same-pair/{taken}", exact=True)).to_be_visible()
        expect(page.get_by_text("lineage, lost posting").first).to_be_visible()
        expect(page.get_by_role("button", name="A goes on")).to_be_disabled()
        page.get_by_role("button", name="Back").click()
        expect(page.get_by_role("button", name="B goes on")).to_be_enabled()
