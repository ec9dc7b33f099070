"""The page of history.py report: in Chromium, where there is one, as its readers see it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from written_log import block, instance, lines, poll, region

import report
from history import EXIT_FOUND, History, Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Record = dict[str, Any]
Browser = webdriver.Chrome

REPOSITORY = Path(__file__).parent.parent
BEGIN = datetime(2026, 8, 5)

HOSTILE = [
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "</script></style></title><h1>owned</h1>",
    "'onmouseover='alert(1)",
    "&lt;b&gt; &amp; $style ${style} {kind} {{}}",
    "datum.row]]>\\",
]
BIDI = "moc\u202egnp.exe\u2066\x1b[31m"


def at(hour: float) -> str:
    return f"{BEGIN + timedelta(hours=hour):%Y-%m-%dT%H:%M:%SZ}"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        reason = "no Chromium with its driver: apt-get install chromium chromium-driver"
        if "REQUIRE_HOST" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, Service(driver))
    yield browser
    browser.quit()


def written(directory: Path, records: Iterable[Record], *arguments: str) -> Path:
    """The page that the command writes about this log."""
    log, page = directory / "inventory.log", directory / "page.html"
    log.write_text(lines(records))
    command: list[str | Path] = [sys.executable, REPOSITORY / "history.py", "--log", log, "report", page, *arguments]
    assert subprocess.run(command, check=False).returncode == EXIT_FOUND
    return page


def shown(browser: Browser, page: Path, *, width: int = 1280, scheme: str = "light") -> Browser:
    """The page, as opened from a disk."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # type: ignore[no-untyped-call]  # what was before is not of this page
    browser.get(page.as_uri())
    return browser


def text(browser: Browser) -> str:
    """All text of the page, of what is folded as well."""
    return str(browser.execute_script("return document.body.textContent"))


def fleet(polls: int = 30) -> list[Record]:
    """A few instances with hostile names, some of which come, go, stop or change, in two regions; and a gap."""
    records: list[Record] = []
    for hour in range(polls):
        if 12 <= hour < 15:
            continue
        time = at(hour)
        seen = [
            instance(
                time,
                number,
                launch_time=at(-number),
                instance_type=f"m{number % 4}.large",
                state="stopped" if number == 3 and hour > 20 else "running",
                tags={"Name": name, "Team": name, "A\"<b>'": "1" if hour < 28 else name},
                public_ip_address=f"54.0.0.{20 - number}",
            )
            for number, name in enumerate([*HOSTILE, BIDI], start=1)
            if number != 2 or hour < 18
        ]
        records += [*seen, region(time, len(seen), tagged=len(seen))]
        failed = hour in (5, 6)
        records.append(region(time, 0, "failed" if failed else "ok", region="us-east-1"))
        records.append(poll(time, 2, complete=not failed))
    return records


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("report"), fleet(), "--tag", "A\"<b>'")


def test_opens_by_itself(chromium: Browser, page: Path) -> None:
    """From a disk, it asks for nothing but itself, and the browser has nothing to complain of."""
    browser = shown(chromium, page)
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]  # type: ignore[no-untyped-call]
    asked = {each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert page.stat().st_size < 2_000_000


def test_runs_no_other_script(chromium: Browser, page: Path) -> None:
    """The policy lets no script run but the page's own, wherever it comes from."""
    browser = shown(chromium, page)
    browser.execute_script(
        "const script = document.createElement('script'); script.textContent = 'document.title = \"owned\"';"
        "document.body.append(script);"
        "const image = document.createElement('img'); image.setAttribute('onerror', 'document.title = \"owned\"');"
        "image.src = 'data:,'; document.body.append(image)"
    )
    assert browser.title == "EC2 flight recorder"
    complaints = [entry["message"] for entry in browser.get_log("browser")]  # type: ignore[no-untyped-call]
    assert any("Content Security Policy" in complaint for complaint in complaints)


def test_what_is_hostile_is_text(chromium: Browser, page: Path) -> None:
    """Names, tags and keys are shown as they are, wherever they are shown, and are never markup."""
    browser = shown(chromium, page)
    content = text(browser)
    for value in [*HOSTILE, "tag A\"<b>'"]:
        assert value in content
    drawn = browser.execute_script("return [...document.querySelectorAll('svg text')].map(each => each.textContent)")
    assert any(label.startswith("<script>") for label in drawn)
    assert browser.title == "EC2 flight recorder"
    assert (
        browser.find_elements(By.CSS_SELECTOR, "img, iframe, object, svg a, svg image, [onerror], [onmouseover]") == []
    )
    assert len(browser.find_elements(By.TAG_NAME, "script")) == 1
    assert [each.text for each in browser.find_elements(By.TAG_NAME, "h1")] == ["EC2 flight recorder"]


def test_what_is_invisible_is_visible(chromium: Browser, page: Path) -> None:
    """Bidi controls and control characters are nowhere in the page, but for how they are written."""
    content = text(shown(chromium, page))
    assert "moc\\u202egnp.exe\\u2066\\x1b[31m" in content
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f]", page.read_text())


@pytest.mark.parametrize("width", [360, 760, 1280])
def test_fits_the_window(chromium: Browser, page: Path, width: int) -> None:
    """The page itself never scrolls sideways; what is wider scrolls in a place of its own, by keyboard too."""
    browser = shown(chromium, page, width=width)
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for place in browser.find_elements(By.CLASS_NAME, "scroll"):
        assert place.get_attribute("tabindex") == "0"
        assert place.get_attribute("aria-label")
    drawn = [each for each in browser.find_elements(By.TAG_NAME, "svg") if each.is_displayed()]
    assert len(drawn) == 6
    least = min(
        each.rect["height"] for chart in drawn for each in chart.find_elements(By.TAG_NAME, "text") if each.text
    )
    assert least >= 12


def luminance(colour: str) -> float:
    parts = [int(colour[position : position + 2], 16) / 255 for position in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_follows_light_and_dark(chromium: Browser, page: Path) -> None:
    """Both modes are what the system asks for, with the contrast that WCAG 2 AA asks of text and of what is drawn."""
    backgrounds = set()
    for scheme in ("light", "dark"):
        browser = shown(chromium, page, scheme=scheme)
        backgrounds.add(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
        names = ["page", "surface", "head", "text", "muted", "accent", "gap"] + [f"series-{each}" for each in range(9)]
        colours: dict[str, str] = browser.execute_script(
            "const style = getComputedStyle(document.documentElement);"
            "return Object.fromEntries(arguments[0].map(name => [name, style.getPropertyValue('--' + name).trim()]))",
            names,
        )
        for ground in ("page", "surface", "head"):
            assert min(contrast(colours[ground], colours[each]) for each in ("text", "muted", "accent")) >= 4.5
        assert min(contrast(colours["surface"], colours[each]) for each in names[6:]) >= 3
        bar = browser.execute_script(
            "return getComputedStyle(document.querySelector('#hours svg path[fill=\"var(--series-0)\"]')).fill"
        )
        assert bar == "rgb({}, {}, {})".format(*bytes.fromhex(colours["series-0"][1:]))
    assert len(backgrounds) == 2


def test_charts_are_told_in_words(chromium: Browser, page: Path) -> None:
    """Every chart is an image with its main facts as its name, a caption, and its data as a table."""
    browser = shown(chromium, page)
    figures = browser.find_elements(By.TAG_NAME, "figure")
    assert len(figures) == 6
    for figure in figures:
        assert re.search(r"\d", figure.find_element(By.CSS_SELECTOR, "[role=img]").get_attribute("aria-label") or "")
        assert figure.find_element(By.TAG_NAME, "figcaption").text
        assert figure.find_elements(By.CSS_SELECTOR, "details table tbody tr")
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))


def column(browser: Browser, position: int) -> list[str]:
    """What is visible of a column of the table of instances."""
    return list(
        browser.execute_script(
            "return [...document.querySelectorAll('#fleet-table tbody tr:not([hidden])')]"
            ".map(row => row.cells[arguments[0]].textContent.trim())",
            position,
        )
    )


def test_search_by_keyboard(chromium: Browser, page: Path) -> None:
    """What is typed leaves the instances that have every word of it, and how many these are is announced."""
    browser = shown(chromium, page)
    search = browser.find_element(By.ID, "search")
    count = browser.find_element(By.ID, "count")
    assert browser.find_element(By.CSS_SELECTOR, "label[for=search]").text
    assert count.get_attribute("aria-live") == "polite"
    everybody = column(browser, 1)
    assert count.text == f"{len(everybody)} instances"
    search.send_keys("RUNNING 54.0.0.19")
    assert column(browser, 1) == ["i-" + "1".zfill(17)]
    assert count.text == f"1 of {len(everybody)} instances"
    search.send_keys(" nobody")
    assert column(browser, 1) == []
    assert count.text == f"0 of {len(everybody)} instances"
    search.send_keys(Keys.CONTROL, "a")
    search.send_keys(Keys.BACKSPACE)
    assert column(browser, 1) == everybody


def test_sort_by_keyboard(chromium: Browser, page: Path) -> None:
    """A column's button sorts by it, up and then down, numbers by their value; the focus is visible and stays."""
    browser = shown(chromium, page)
    position = 6
    head = browser.find_elements(By.CSS_SELECTOR, "#fleet-table th")[position]
    assert head.text.startswith("Public IP")
    browser.find_element(By.ID, "search").send_keys(Keys.TAB, *[Keys.TAB] * (position + 1))
    focused = browser.switch_to.active_element
    assert focused == head.find_element(By.TAG_NAME, "button")
    assert focused.value_of_css_property("outline-style") == "solid"
    expected = sorted(column(browser, position), key=lambda address: int(address.rsplit(".", 1)[1]))
    for key, order, addresses in (
        (Keys.ENTER, "ascending", expected),
        (Keys.SPACE, "descending", expected[::-1]),
    ):
        focused.send_keys(key)
        assert head.get_attribute("aria-sort") == order
        assert column(browser, position) == addresses
        assert browser.switch_to.active_element == focused
    browser.find_element(By.CSS_SELECTOR, "#fleet-table th button").click()
    assert len(browser.find_elements(By.CSS_SELECTOR, "[aria-sort]")) == 1


def test_thousands_of_instances(chromium: Browser, tmp_path: Path) -> None:
    """Three thousand instances make a page of under two megabytes, which is searched and sorted at once."""
    seen = [
        instance(at(0), number % 250, instance_id=f"i-{number:017x}", tags={"Name": f"n{number}"})
        for number in range(3000)
    ]
    page = written(tmp_path, block(at(0), *seen))
    assert page.stat().st_size < 2_000_000
    browser = shown(chromium, page)
    browser.find_element(By.ID, "search").send_keys("n2999")
    assert column(browser, 0) == ["n2999"]
    took = browser.execute_script(
        "const begin = performance.now(); document.querySelector('#fleet-table button').click();"
        "document.body.offsetHeight; return performance.now() - begin"
    )
    assert took < 2000


def test_a_short_gap_in_a_year_is_visible(chromium: Browser, tmp_path: Path) -> None:
    """Two hours without a poll in a year are three pixels wide, on a phone too, and are in the table."""
    records = [record for hour in range(365 * 24) if hour != 4000 for record in block(at(hour), instance(at(hour), 1))]
    page = written(tmp_path, records)
    for width in (1280, 360):
        browser = shown(chromium, page, width=width)
        (gap,) = [
            each
            for each in browser.find_elements(By.CSS_SELECTOR, '#coverage path[fill="var(--gap)"]')
            if each.is_displayed()
        ]
        assert gap.rect["width"] >= 2.5
    assert f"{BEGIN + timedelta(hours=3999):%Y-%m-%d %H:%M:%S}" in text(browser)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#fleet figure:first-of-type details tbody tr")) <= 241


@pytest.mark.parametrize("field", ["state", "instance_type", "region"])
def test_the_fleet_is_counted_right(tmp_path: Path, field: str) -> None:
    """At each poll, as many are counted of each kind as have a line in it, but for those that are ending."""
    chance = random.Random(7)
    states = ["pending", "running", "running", "running", "stopping", "stopped", "shutting-down", "terminated"]
    ages: dict[int, int] = {}
    types: dict[int, str] = {}
    records: list[Record] = []
    counts: dict[str, Counter[str]] = {}
    for hour in range(48):
        ages = {number: age + chance.randrange(2) for number, age in ages.items()}
        ages = {number: age for number, age in ages.items() if age < len(states)}
        for _ in range(chance.randrange(4)):
            number = len(types) + 1
            ages[number], types[number] = 0, chance.choice(["a.small", "b.small", "c.small"])
        seen = [instance(at(hour), each, instance_type=types[each], state=states[age]) for each, age in ages.items()]
        records += block(at(hour), *seen)
        counts[at(hour)] = Counter(each[field] for each in seen if each["state"] not in ("shutting-down", "terminated"))
    log = tmp_path / "inventory.log"
    log.write_text(lines(records))
    extent = report.Extent(BEGIN, BEGIN + timedelta(hours=47))
    with History([str(log)]) as history:
        counted = report.counted(history, extent, report.samples(history, extent), f"spans.{field}")
    assert [f"{time:%Y-%m-%dT%H:%M:%SZ}" for time in counted.samples] == list(counts)
    for position, expected in enumerate(counts.values()):
        found = Counter({kind: numbers[position] for kind, numbers in counted.kinds})
        assert +found == expected


ONE = block(at(0), instance(at(0), 1))
LOGS: dict[str, list[Record]] = {
    "an empty log": [],
    "one poll": ONE,
    "one poll without instances": block(at(0)),
    "a region that fails": [region(at(0), 0, "failed"), poll(at(0), complete=False)],
    "no identity": [poll(at(0), 0, account=None, complete=False)],
    "a poll that was cut off": [instance(at(0), 1)],
    "only a terminated instance": block(at(0), instance(at(0), 1, state="terminated", instance_type=None)),
    "two accounts": [*ONE, *({**each, "account": "210987654321"} for each in ONE)],
    "twenty types": block(at(0), *(instance(at(0), each, instance_type=f"t{each}.nano") for each in range(20))),
}
WINDOWS = [
    Window(),
    Window(BEGIN - timedelta(days=2), BEGIN - timedelta(days=1)),
    Window(BEGIN + timedelta(days=1), BEGIN + timedelta(days=2)),
    Window(BEGIN, BEGIN),
    Window(BEGIN, None),
    Window(BEGIN + timedelta(days=1), BEGIN),
]


@pytest.mark.parametrize("log", LOGS)
def test_what_is_lacking_is_said(tmp_path: Path, log: str) -> None:
    """Whatever the log and the time asked for lack, there is a page, with every section and no empty chart."""
    path = tmp_path / "inventory.log"
    path.write_text(lines(LOGS[log]))
    with History([str(path)]) as history:
        pages = [report.page(history, window, "Team") for window in WINDOWS]
    for page in pages:
        assert len(re.findall("<section ", page)) == 5
        assert page.count("<svg") == 2 * page.count('role="img"')
        assert not re.search(r"\b(None|nan|NaN|undefined)\b", page)
