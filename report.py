"""One self-contained page about what the log says, for people who would rather look than query.

It opens without a network: charts are SVG, drawn here by Vega-Lite; colours and fonts are the page's, so that they
follow its light and dark mode. Whatever is in the log is text, never markup. docs/history.md says what it all means.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from html import escape
from string import Template
from typing import TYPE_CHECKING, Any, Final

import vl_convert

from history import GAP, KEY, Answer, History, Window, cell, when

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

POINTS: Final = 240
"""How many points a line has at most: a poll of each three hours in a month, of each 36 in a year."""
SERIES: Final = 8
"""How many kinds have a colour of their own; the rest are one more."""
GREY: Final = 8
"""The colour of the rest, and of what is stopped."""
BARS: Final = 12
CHANGES: Final = 50
GAPS: Final = 100
STRETCHES: Final = 500
LONG: Final = 44
"""In characters: what longer text is broken into lines. Two full times are shorter."""

WIDE: Final = 700
NARROW: Final = 340
VISIBLE_WIDTH: Final = 3
"""In pixels, of the shortest gap."""

# ---------------------------------------------------------------------------------------------------------------------
# What is asked
# ---------------------------------------------------------------------------------------------------------------------

# An instance counts from the first poll that saw it alive to the last, or on, if it has not been seen to end.
INTERVALS: Final = f"""
WITH spans_in_time AS (
    SELECT {{kind}} AS kind, spans.first_seen AS begin, ends, coalesce(
        lead(spans.first_seen) OVER (PARTITION BY {KEY} ORDER BY n),
        CASE fate WHEN 'vanished unseen' THEN spans.last_seen + INTERVAL '1 microsecond' ELSE TIMESTAMP 'infinity' END
    ) AS until
    FROM spans JOIN lives USING ({KEY})
), intervals AS (
    SELECT kind, begin, until FROM spans_in_time WHERE NOT ends AND begin < until
)
"""

SAMPLES: Final = f"""
{INTERVALS.format(kind="NULL")}, steps AS (
    SELECT time, sum(sum(step)) OVER (ORDER BY time) AS instances
    FROM (SELECT begin AS time, 1 AS step FROM intervals UNION ALL SELECT until, -1 FROM intervals)
    GROUP BY time
), counted AS (
    SELECT asked.timestamp, coalesce(instances, 0) AS instances
    FROM (SELECT DISTINCT timestamp FROM polls WHERE timestamp BETWEEN $opens AND $closes) AS asked
    ASOF LEFT JOIN steps ON asked.timestamp >= steps.time
)
SELECT max_by(timestamp, (instances, timestamp)) AS time
FROM counted
GROUP BY floor((epoch(timestamp) - epoch($opens)) / $bucket)
UNION
SELECT max(timestamp) FROM counted HAVING max(timestamp) IS NOT NULL
ORDER BY time
"""

FLEET: Final = f"""
{INTERVALS}, ranked AS (
    SELECT kind, least($series, row_number() OVER (ORDER BY lasted DESC, kind) - 1) AS series
    FROM (
        SELECT kind, sum(epoch(least(until, $closes)) - epoch(greatest(begin, $opens))) AS lasted
        FROM intervals
        WHERE begin <= $closes AND until > $opens
        GROUP BY kind
    )
), steps AS (
    SELECT series, time, sum(sum(step)) OVER (PARTITION BY series ORDER BY time) AS instances
    FROM (SELECT kind, begin AS time, 1 AS step FROM intervals UNION ALL SELECT kind, until, -1 FROM intervals) AS each
    JOIN ranked ON ranked.kind IS NOT DISTINCT FROM each.kind
    GROUP BY series, time
), kinds AS (
    SELECT series, count(*) AS kinds, min(kind) AS kind FROM ranked GROUP BY series
)
SELECT asked.series, CASE WHEN kinds = 1 THEN kind ELSE kinds || ' others' END AS kind,
    list(coalesce(instances, 0)::BIGINT ORDER BY asked.time) AS instances
FROM (SELECT series, kinds, kind, time FROM kinds CROSS JOIN (SELECT unnest($samples::TIMESTAMP[]) AS time)) AS asked
ASOF LEFT JOIN steps ON asked.series = steps.series AND asked.time >= steps.time
GROUP BY asked.series, kinds, kind
HAVING max(instances) > 0
ORDER BY asked.series
"""


@dataclass(frozen=True)
class Extent:
    """The time that the page is about."""

    opens: datetime
    closes: datetime

    @property
    def length(self) -> timedelta:
        return self.closes - self.opens

    def __str__(self) -> str:
        return f"{cell(self.opens)} to {cell(self.closes)} UTC"


@dataclass(frozen=True)
class Fleet:
    """How many instances existed at each of some polls: the kinds as they are stacked, what varies most on top."""

    samples: list[datetime]
    kinds: list[tuple[str, list[int]]]
    colours: list[int]

    @property
    def totals(self) -> list[int]:
        return [sum(numbers) for numbers in zip(*(numbers for _, numbers in self.kinds))] or [0] * len(self.samples)


def page(history: History, window: Window, tag: str) -> str:
    """The whole HTML document."""
    first, last = history.extent()
    now = datetime.now(timezone.utc).replace(tzinfo=None, microsecond=0)
    opens = window.since or first or now
    closes = window.until or (now if window.since else last) or now
    # What has no length cannot be drawn.
    extent = Extent(opens, max(closes, opens + timedelta(hours=1)))
    stretches = history.coverage(window, GAP)
    polled = samples(history, extent)
    time = window.until or history.one("SELECT max(ended) FROM polls")[0]
    present = history.at(time)
    sections = [
        _figures(history, extent, stretches, present, time),
        _section("fleet", "The fleet over time", _fleet(history, extent, polled)),
        _section("coverage", "Coverage", _coverage(stretches, extent)),
        _section("changes", "What changed last", _changes(history, Window(window.since or first, window.until))),
        _section("hours", "Running hours", _hours(history, window, tag)),
        _section("instances", "The instances", _instances(present, time)),
    ]
    oddities = "; ".join(history.oddities())
    return Template(PAGE).substitute(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src '{_hash(SCRIPT)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        style=STYLE,
        script=SCRIPT,
        extent=_text(f"{_named(history)}From {cell(opens)} to {cell(closes)}." if first else "The log has no polls."),
        oddities=f'<p class="note">Left out of the log, or known only in part: {_text(oddities)}.</p>'
        if oddities
        else "",
        sections="\n".join(sections),
        written=_text(f"{cell(now)} UTC"),
    )


def samples(history: History, extent: Extent) -> list[datetime]:
    """The polls that are drawn."""
    bucket = extent.length.total_seconds() / POINTS
    asked = history.ask(SAMPLES, opens=extent.opens, closes=extent.closes, bucket=bucket)
    return [time for (time,) in asked.rows]


def counted(history: History, extent: Extent, polled: list[datetime], kind: str) -> Fleet:
    """How many instances there were at these polls, by this SQL of a span."""
    found = history.ask(
        FLEET.format(kind=kind), opens=extent.opens, closes=extent.closes, samples=polled, series=SERIES
    )
    rows = sorted(found.rows, key=lambda row: min(row[2]) - max(row[2]))
    free = iter(range(SERIES))
    colours = [GREY if series == SERIES or name == "stopped" else next(free) for series, name, _ in rows]
    return Fleet(polled, [(cell(name), numbers) for _, name, numbers in rows], colours)


# ---------------------------------------------------------------------------------------------------------------------
# The sections
# ---------------------------------------------------------------------------------------------------------------------


def _figures(history: History, extent: Extent, stretches: Answer, present: Answer, time: datetime | None) -> str:
    polls, complete = history.one(
        "SELECT count(*), count(*) FILTER (complete) FROM polls WHERE timestamp BETWEEN $opens AND $closes",
        opens=extent.opens,
        closes=extent.closes,
    )
    gaps = _gaps(stretches)
    longest = max((end - begin for _, _, _, begin, end, *_ in gaps), default=timedelta())
    running = sum(row[present.columns.index("state")] == "running" for row in present.rows)
    figures = [
        ("Instances at the end", f"{len(present.rows):,}", f"{running:,} running" if time else "no poll yet"),
        ("Polls", f"{polls:,}", f"in {_long(extent.length)}"),
        ("Complete polls", f"{complete:,}", f"{1000 * complete // polls / 10}% of them" if polls else "none"),
        ("Gaps", f"{len(gaps):,}", f"the longest of {_long(longest)}" if gaps else "none over 65 minutes"),
    ]
    items = "".join(
        f"<div><dt>{_text(name)}</dt><dd><strong>{_text(figure)}</strong> <small>{_text(note)}</small></dd></div>"
        for name, figure, note in figures
    )
    return f'<dl class="figures">{items}</dl>'


def _named(history: History) -> str:
    """Whose log it is."""
    accounts = [account for (account,) in history.ask("SELECT DISTINCT account FROM regions ORDER BY account").rows]
    more = f" and {len(accounts) - 5:,} more" if len(accounts) > 5 else ""
    return f"Account{'' if len(accounts) == 1 else 's'} {', '.join(accounts[:5])}{more}. " if accounts else ""


def _fleet(history: History, extent: Extent, polled: list[datetime]) -> str:
    if not polled:
        return _nothing("No poll is in this time.")
    region = (
        "account || ' ' || region" if history.one("SELECT count(DISTINCT account) FROM regions")[0] > 1 else "region"
    )
    rule = "An instance counts from the first poll that saw it alive to the last; over a gap, it counts on."
    return f"<p>{rule}</p>" + "".join(
        _fleet_figure(name, counted(history, extent, polled, kind), extent)
        for name, kind in (("State", "spans.state"), ("Type", "spans.instance_type"), ("Region", region))
    )


def _fleet_figure(name: str, fleet: Fleet, extent: Extent) -> str:
    title = f"Instances by {name.lower()}"
    if not fleet.kinds:
        return _empty_figure(title, "No instance existed in this time.")
    totals = fleet.totals
    most = max(totals)
    caption = f"At most {most:,}, at {cell(fleet.samples[totals.index(most)])} UTC. " + (
        f"Drawn for each {_long(extent.length / POINTS)}: the poll with the most instances."
        if len(totals) > POINTS // 2
        else "Drawn: every poll."
    )
    last = ", ".join(f"{kind} {numbers[-1]:,}" for kind, numbers in fleet.kinds)
    fact = f"{title}, {extent}. {caption} At the end {totals[-1]:,}: {last}."
    legend = _legend(
        [name, "At the end", "At most"],
        [(colour, [kind, numbers[-1], max(numbers)]) for colour, (kind, numbers) in zip(fleet.colours, fleet.kinds)],
    )
    data = Answer(
        ["Time", *(kind for kind, _ in fleet.kinds)],
        list(zip(fleet.samples, *(numbers for _, numbers in fleet.kinds))),
    )
    return _figure(title, caption, fact, [_areas(fleet, extent, width) for width in (WIDE, NARROW)], legend, data)


def _coverage(stretches: Answer, extent: Extent) -> str:
    if not stretches.rows:
        return _nothing("No region was asked in this time.")
    gaps = _gaps(stretches)
    names = _names(stretches)
    mine = {key: [row for row in gaps if row[:2] == key] for key in names}
    caption = (
        "In a gap, over 65 minutes passed from the beginning of one poll that covers the region to the end of the next: "
        "what lived in it for no longer than the hours “unseen” may have come and gone. "
        f"Gaps are drawn at least {VISIBLE_WIDTH} pixels wide."
    )
    longest = f", the longest of {_long(max(end - begin for _, _, _, begin, end, *_ in gaps))}" if gaps else ""
    fact = f"Coverage of {_number(len(names), 'region')}, {extent}: {_number(len(gaps), 'gap')}{longest}."
    legend = _legend(
        ["Region", "Gaps", "Unseen hours"],
        [(None, [name, len(mine[key]), round(sum(row[6] for row in mine[key]), 1)]) for key, name in names.items()],
        KEY_TO_STRIPS,
    )
    drawings = [_strips(stretches, names, extent, width) for width in (WIDE, NARROW)]
    columns = ["Account", "Region", "Status", "Begin", "End", "Polls", "Unseen hours", "Reason"]
    every = Answer(columns, stretches.rows[-STRETCHES:])
    return _figure("When each region was covered", caption, fact, drawings, legend, every) + _listed(gaps)


def _names(stretches: Answer) -> dict[tuple[str, str], str]:
    """What to call each account and region."""
    several = len({row[0] for row in stretches.rows}) > 1
    return {row[:2]: cell(f"{row[0]} {row[1]}" if several else row[1]) for row in stretches.rows}


def _listed(gaps: Sequence[tuple[Any, ...]]) -> str:
    if not gaps:
        return _nothing("There is no gap.")
    longest = sorted(gaps, key=lambda row: row[3] - row[4])[:GAPS]
    rows = [
        (account, region, begin, end, unseen, reason)
        for account, region, _, begin, end, _, unseen, reason in sorted(longest, key=lambda row: row[3], reverse=True)
    ]
    heading = f"The {GAPS} longest of {len(gaps):,} gaps" if len(gaps) > GAPS else "The gaps, the latest first"
    columns = ["Account", "Region", "Begin", "End", "Unseen hours", "Reason"]
    return f"<h3>{_text(heading)}</h3>" + _table(Answer(columns, rows), "Gaps")


def _changes(history: History, window: Window) -> str:
    changes = history.changes(window)
    if not changes.rows:
        return _nothing("Nothing changed in this time.")
    several = len({row[changes.columns.index("account")] for row in changes.rows}) > 1
    rows = []
    for row in reversed(changes.rows[-CHANGES:]):
        change = dict(zip(changes.columns, row))
        what = f"{change['field']}: {cell(change['before'])} → {cell(change['after'])}" if change["field"] else ""
        time = when(change["time_earliest"], change["time_latest"])
        place = f"{change['account']} {change['region']}" if several else change["region"]
        rows.append((time, change["event"], change["name"], change["instance_id"], place, what))
    table = _table(Answer(["Time", "Event", "Name", "Instance", "Region", "What"], rows), "What changed last")
    return (
        f"<p>The last {_text(_number(len(rows), 'change'))} of {len(changes.rows):,}. A single time is exact, as AWS gave it; "
        "where there are two, it was between them.</p>" + table
    )


def _hours(history: History, window: Window, tag: str) -> str:
    return (
        '<div class="pair">'
        + "".join(
            _hours_figure(name, history.hours([field], window))
            for name, field in (("type", "instance_type"), (f"tag {tag}", f"tag:{tag}"))
        )
        + "</div>"
    )


def _hours_figure(name: str, answer: Answer) -> str:
    title = f"Hours by {name}"
    if not answer.rows:
        return _empty_figure(title, "Nothing ran in this time.")
    rows = [(cell(kind) if kind is not None else "(none)", *numbers) for kind, *numbers in answer.rows]
    drawn, rest = (rows, []) if len(rows) <= BARS else (rows[: BARS - 1], rows[BARS - 1 :])
    if rest:
        drawn.append((f"({len(rest):,} others)", *(sum(numbers) for numbers in zip(*(row[1:] for row in rest)))))
    total = _amount(*(sum(row[position] for row in rows) for position in (2, 3)))
    caption = (
        f"{total} hours in all. The truth is no further from a figure than what follows its ±; "
        "the thin line at the end of a bar spans as much."
    )
    most = "; ".join(f"{kind} {_amount(hours, error)}" for kind, _, hours, error in drawn[:3])
    fact = f"{title}: {total} in all. Most: {most}."
    data = Answer([name, "Instances", "Hours", "Error"], list(rows))
    return _figure(title, caption, fact, [_bars(drawn, width) for width in (520, NARROW)], "", data)


def _instances(present: Answer, time: datetime | None) -> str:
    if not present.rows:
        return _nothing("No instance existed then." if time else "No instance is known.")
    columns = ["name", "instance_id", "state", "instance_type", "zone", "private_ip_address", "public_ip_address"]
    columns += ["launch_time", "last_seen", "known"]
    if len({row[0] for row in present.rows}) > 1:
        columns.insert(0, "account")
    rows = []
    for row in present.rows:
        instance = dict(zip(present.columns, row))
        instance["zone"] = instance["availability_zone"] or instance["region"]
        rows.append(tuple(instance[column] for column in columns))
    heads = {
        "instance_id": "Instance",
        "instance_type": "Type",
        "private_ip_address": "Private IP",
        "public_ip_address": "Public IP",
        "launch_time": "Last start",
    }
    heads = {column: heads.get(column, column.replace("_", " ").capitalize()) for column in columns}
    head = "".join(f'<th scope="col"><button type="button">{_text(heads[column])}</button></th>' for column in columns)
    count = _number(len(rows), "instance")
    return f"""
<p>As of {_text(cell(time))} UTC. <b>Known</b> says how surely: <i>agreed</i>, a poll saw it so then; <i>exact</i>,
it follows from times that AWS gave; <i>bounded</i>, something changed about then; <i>last</i>, nothing later is known.</p>
<p class="search"><label for="search">Search the instances</label>
<input id="search" type="search" autocomplete="off" spellcheck="false" placeholder="name, id, type, address …">
<span id="count" role="status" aria-live="polite">{_text(count)}</span></p>
<div class="scroll tall" role="region" tabindex="0" aria-label="The instances"><table id="fleet-table">
<thead><tr>{head}</tr></thead>
<tbody>
{_rows(rows, [" class=long", *[""] * len(columns)] if columns[0] == "name" else [""] * len(columns))}
</tbody></table></div>"""


# ---------------------------------------------------------------------------------------------------------------------
# The charts
# ---------------------------------------------------------------------------------------------------------------------

TIMES: Final = {
    "year": "%Y",
    "quarter": "%b",
    "month": "%b",
    "week": "%-d %b",
    "date": "%-d %b",
    "day": "%-d %b",
    "hours": "%H:%M",
    "minutes": "%H:%M",
    "seconds": "%H:%M:%S",
}

CONFIG: Final = {
    "aria": False,  # what a screen reader is told is around the chart
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)",
        "gridColor": "var(--rule)",
        "tickColor": "var(--rule)",
        "domain": False,
        "labelFontSize": 12,
        "labelPadding": 5,
        "title": None,
    },
    "text": {"fontSize": 13},
}


def _drawn(width: int, height: int, layers: Sequence[dict[str, Any]]) -> str:
    """A chart as SVG. What is in the layers' data stays data: nothing of it is an expression or the name of a field."""
    return vl_convert.vegalite_to_svg(
        {
            "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
            "width": width,
            "height": height,
            "autosize": {"type": "fit", "contains": "padding"},
            "padding": {"left": 1, "top": 6, "right": 1, "bottom": 1},
            "background": None,
            "config": CONFIG,
            "layer": list(layers),
        },
        allowed_base_urls=[],
    )


def _times(extent: Extent, width: int) -> dict[str, Any]:
    """The axis that all charts over time share."""
    return {
        "field": "begin",
        "type": "temporal",
        "scale": {"type": "utc", "domain": [_milliseconds(extent.opens), _milliseconds(extent.closes)], "nice": False},
        "axis": {"format": TIMES, "tickCount": width // 85, "grid": False, "labelFlush": True, "labelOverlap": True},
    }


def _areas(fleet: Fleet, extent: Extent, width: int) -> str:
    drawn = [*fleet.samples, extent.closes]
    values = [
        {"begin": _milliseconds(time), "series": series, "instances": number}
        for series, (_, numbers) in enumerate(fleet.kinds)
        # The last poll's number holds until the end; two points of one time would be stacked on each other.
        for time, number in dict(zip(drawn, [*numbers, numbers[-1]])).items()
    ]
    series = list(range(len(fleet.kinds)))
    area = {
        "data": {"values": values},
        "mark": {"type": "area", "interpolate": "step-after"},
        "encoding": {
            "x": _times(extent, width),
            "y": {
                "field": "instances",
                "type": "quantitative",
                "stack": True,
                "axis": {"tickMinStep": 1, "tickCount": 5, "format": ",d", "ticks": False},
            },
            "color": {
                "field": "series",
                "type": "nominal",
                "scale": {"domain": series, "range": [f"var(--series-{colour})" for colour in fleet.colours]},
                "legend": None,
            },
            "order": {"field": "series", "sort": "descending"},
        },
    }
    return _drawn(width, 250 if width == WIDE else 200, [area])


ROWS: Final = {"field": "row", "type": "ordinal", "axis": None, "scale": {"paddingInner": 0, "paddingOuter": 0}}


def _strips(stretches: Answer, names: Mapping[tuple[str, str], str], extent: Extent, width: int) -> str:
    least = extent.length * (VISIBLE_WIDTH / width)
    covered: list[dict[str, object]] = []
    gaps: list[dict[str, object]] = []
    labels: list[tuple[str, str]] = []
    for row, (key, name) in enumerate(names.items()):
        mine = [each for each in stretches.rows if each[:2] == key]
        missed = [(each[3], each[4]) for each in _gaps(Answer(stretches.columns, mine))]
        covered += _bounds(row, ((each[3], each[4]) for each in mine if each[2] == "covered"), extent)
        gaps += _bounds(row, _widened(missed, least), extent)
        labels.append((name, _number(len(missed), "gap") if missed else "no gap"))
    bars = [
        {
            "data": {"values": values},
            "mark": {"type": "bar", "height": height, "yOffset": 9, "fill": colour},
            "encoding": {"y": ROWS, "x": _times(extent, width), "x2": {"field": "end"}},
        }
        for values, height, colour in ((covered, 8, "var(--series-0)"), (gaps, 16, "var(--gap)"))
    ]
    return _drawn(width, 42 * len(names) + 24, [*bars, *_labels(labels, width)])


def _widened(gaps: Iterable[tuple[datetime, datetime]], least: timedelta) -> Iterator[tuple[datetime, datetime]]:
    for begin, end in gaps:
        margin = max(timedelta(), least - (end - begin)) / 2
        yield begin - margin, end + margin


def _bounds(row: int, stretches: Iterable[tuple[datetime, datetime]], extent: Extent) -> list[dict[str, object]]:
    """As few bars as show these."""
    return [
        {
            "row": row,
            "begin": _milliseconds(max(begin, extent.opens)),
            "end": _milliseconds(min(end, extent.closes)),
        }
        for begin, end in _merged(stretches)
        if begin < extent.closes and end > extent.opens
    ]


def _bars(rows: Sequence[tuple[Any, ...]], width: int) -> str:
    values = [
        {"row": row, "hours": hours, "least": hours - error, "most": hours + error}
        for row, (_, _, hours, error) in enumerate(rows)
    ]
    bar = {
        "data": {"values": values},
        "mark": {"type": "bar", "height": 10, "yOffset": 9, "fill": "var(--series-0)"},
        "encoding": {"y": ROWS, "x": {"field": "hours", "type": "quantitative", "axis": None}},
    }
    errors = {
        "data": {"values": [each for each in values if each["most"] > each["least"]]},
        "mark": {"type": "rule", "yOffset": 9, "stroke": "var(--text)", "strokeWidth": 3},
        "encoding": {
            "y": ROWS,
            "x": {"field": "least", "type": "quantitative", "axis": None},
            "x2": {"field": "most"},
        },
    }
    labels = [(kind, f"{_amount(hours, error)} h") for kind, _, hours, error in rows]
    return _drawn(width, 40 * len(rows), [bar, errors, *_labels(labels, width)])


def _labels(labels: Sequence[tuple[str, str]], width: int) -> list[dict[str, Any]]:
    """Left and right over each row, where they need no margin of their own, on a phone either."""
    values = [{"row": row, "left": left, "right": right} for row, (left, right) in enumerate(labels)]
    return [
        {
            "data": {"values": values},
            "mark": {"type": "text", "align": side, "dy": -9, "limit": limit, "fill": colour},
            "encoding": {"y": ROWS, "x": {"value": x}, "text": {"field": side, "type": "nominal"}},
        }
        for side, x, limit, colour in (
            ("left", 0, width - 140, "var(--text)"),
            ("right", "width", 135, "var(--muted)"),
        )
    ]


def _merged(stretches: Iterable[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """The same time, without two stretches that touch."""
    merged: list[tuple[datetime, datetime]] = []
    for begin, end in sorted(stretches):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def _milliseconds(time: datetime) -> int:
    return round(time.replace(tzinfo=timezone.utc).timestamp() * 1000)


# ---------------------------------------------------------------------------------------------------------------------
# The page's parts
# ---------------------------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    """A value as a person reads it, as text in HTML."""
    return escape(cell(value))


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _amount(hours: float, error: float) -> str:
    return f"{hours:,.1f} ± {error:,.1f}" if round(error, 1) else f"{hours:,.1f}"


def _long(duration: timedelta) -> str:
    """About how long."""
    for unit, seconds in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = duration.total_seconds() / seconds
        if count >= 1.95:
            return f"{count:.1f}".removesuffix(".0") + f" {unit}s"
    return _number(round(duration.total_seconds() / 60), "minute")


def _gaps(stretches: Answer) -> list[tuple[Any, ...]]:
    return [row for row in stretches.rows if row[stretches.columns.index("status")] == "gap"]


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{content}</section>'


def _nothing(text: str) -> str:
    return f'<p class="nothing">{_text(text)}</p>'


def _empty_figure(title: str, why: str) -> str:
    return f'<figure class="chart"><h3>{_text(title)}</h3>{_nothing(why)}</figure>'


def _figure(title: str, caption: str, fact: str, drawings: Sequence[str], legend: str, data: Answer) -> str:
    """A chart, wide and narrow, and its data."""
    wide, narrow = drawings
    return f"""
<figure class="chart"><h3>{_text(title)}</h3>
<div class="drawing"><div role="img" aria-label="{_text(fact)}"><div class="wide">{wide}</div><div class="narrow">{narrow}</div></div>
{legend}</div>
<figcaption>{_text(caption)}</figcaption>
<details><summary>Data</summary>{_table(data, f"Data: {title}")}</details></figure>"""


KEY_TO_STRIPS: Final = (
    '<p class="key"><span><i class="swatch" style="background:var(--series-0)"></i>covered</span>'
    '<span><i class="swatch" style="background:var(--gap)"></i>gap</span></p>'
)


def _legend(heads: Sequence[str], rows: Iterable[tuple[int | None, Sequence[Any]]], key: str = "") -> str:
    """Names and figures of what is drawn, with the number of their colour."""
    head = "".join(f'<th scope="col">{_text(each)}</th>' for each in heads)
    body = "".join(
        f'<tr><th scope="row">{_swatch(colour)}{_text(name)}</th>'
        + "".join(f"<td>{number:,}</td>" for number in numbers)
        + "</tr>"
        for colour, (name, *numbers) in rows
    )
    return f'<div class="legend">{key}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _swatch(colour: int | None) -> str:
    return "" if colour is None else f'<i class="swatch" style="background:var(--series-{colour})"></i>'


def _table(data: Answer, name: str) -> str:
    kinds = [_kind(data, position) for position in range(len(data.columns))]
    head = "".join(f'<th scope="col"{kind}>{_text(column)}</th>' for column, kind in zip(data.columns, kinds))
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_text(name)}"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{_rows(data.rows, kinds)}\n</tbody></table></div>"
    )


def _kind(data: Answer, position: int) -> str:
    """The class of a column: numbers end on the right, and long text may need several lines."""
    values = [row[position] for row in data.rows]
    if all(isinstance(value, (int, float)) for value in values):
        return " class=n"
    return " class=long" if any(isinstance(value, str) and len(value) > LONG for value in values) else ""


def _rows(rows: Iterable[Sequence[object]], kinds: Sequence[str]) -> str:
    """HTML closes cells and rows by itself, and thousands of them are shorter for it."""
    return "\n".join("<tr>" + "".join(f"<td{kind}>{_text(value)}" for kind, value in zip(kinds, row)) for row in rows)


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


STYLE: Final = """
:root {
  color-scheme: light dark;
  --page: #f4f6f8; --surface: #ffffff; --text: #18212c; --muted: #536070; --rule: #d8dee6; --accent: #0a5aa6;
  --head: #eef1f5; --gap: #c6302b;
  --series-0: #0072b2; --series-1: #e35205; --series-2: #116a69; --series-3: #a082c6; --series-4: #9c5b00;
  --series-5: #3d8bfd; --series-6: #6c0735; --series-7: #2c9a3f; --series-8: #767d87;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f141b; --surface: #181f29; --text: #e6ebf2; --muted: #a5b1c0; --rule: #313c4a; --accent: #86c0ff;
    --head: #222b37; --gap: #ff7a6b;
    --series-0: #4d9fe0; --series-1: #fd7807; --series-2: #0cc79b; --series-3: #ccadff; --series-4: #ffe486;
    --series-5: #bcd0e2; --series-6: #b6566f; --series-7: #89d46a; --series-8: #8b95a3;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 1rem; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
header, main, footer { max-width: 1200px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 40px; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; }
h2 { margin: 56px 0 16px; font-size: 1.375rem; line-height: 1.25; }
h3 { margin: 0 0 12px; font-size: 1rem; overflow-wrap: anywhere; }
p { margin: 0 0 12px; max-width: 75ch; }
header p, figcaption, footer, .nothing, small { color: var(--muted); }
header p { margin: 6px 0 16px; max-width: none; }
.note { padding: 8px 12px; border-left: 4px solid var(--gap); background: var(--surface); overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 24px; padding: 0; list-style: none; }
a { color: var(--accent); text-underline-offset: 3px; }
nav a { display: inline-block; padding: 4px 0; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px; margin: 0; }
.figures div, .chart { border: 1px solid var(--rule); border-radius: 10px; background: var(--surface); }
.figures div { padding: 14px 18px; }
.figures dt { color: var(--muted); font-size: 0.875rem; }
.figures dd { margin: 0; overflow-wrap: anywhere; }
.figures strong { display: block; font-size: 1.625rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
small { font-size: 0.8125rem; }
.chart { margin: 0 0 16px; padding: 18px 20px; min-width: 0; }
.chart + h3 { margin-top: 24px; }
.drawing > div { min-width: 0; }
.chart svg { display: block; max-width: 100%; height: auto; overflow: visible; }
.chart svg text { font-family: inherit; }
.narrow { display: none; }
figcaption { margin-top: 12px; max-width: 85ch; font-size: 0.875rem; }
details { margin-top: 8px; }
summary { width: fit-content; color: var(--accent); font-size: 0.875rem; cursor: pointer; }
details[open] summary { margin-bottom: 8px; }
@media (min-width: 1080px) {
  .drawing:has(.legend) { display: grid; grid-template-columns: 700px minmax(0, 1fr); gap: 40px; align-items: start; }
}
@media (min-width: 900px) {
  .pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; align-items: start; }
}
table { border-collapse: collapse; font-size: 0.8125rem; font-variant-numeric: tabular-nums; }
.legend table { width: 100%; }
.key { display: flex; gap: 20px; margin: 0 0 8px; font-size: 0.8125rem; }
.legend th, .legend td { padding: 4px 0 4px 12px; border-bottom: 1px solid var(--rule); font-weight: normal; }
.legend thead th { color: var(--muted); vertical-align: bottom; }
.legend td, .legend thead th { text-align: right; }
.legend th:first-child { padding-left: 0; text-align: left; overflow-wrap: anywhere; }
.swatch { display: inline-block; width: 12px; height: 12px; margin-right: 8px; border-radius: 3px; vertical-align: -1px; }
.scroll { overflow: auto; max-height: 480px; border: 1px solid var(--rule); border-radius: 8px; background: var(--surface); }
.scroll.tall { max-height: 80vh; }
.scroll table { width: 100%; }
.scroll th, .scroll td { padding: 6px 12px; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
.scroll td { white-space: nowrap; }
.scroll td.long { min-width: 160px; max-width: 420px; white-space: normal; overflow-wrap: anywhere; }
.scroll th { position: sticky; top: 0; background: var(--head); white-space: nowrap; }
.scroll .n { text-align: right; }
.scroll tr:last-child td { border-bottom: 0; }
.search { display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: center; max-width: none; }
.search input { flex: 0 1 320px; min-width: 0; padding: 8px 12px; border: 1px solid var(--muted); border-radius: 6px;
  background: var(--surface); color: var(--text); font: inherit; }
.search input::placeholder { color: var(--muted); opacity: 1; }
#fleet-table td { padding: 6px 8px; }
#fleet-table td.long { min-width: 104px; }
#fleet-table th { padding: 0; }
th button { width: 100%; padding: 8px; border: 0; background: none; color: inherit; font: inherit; font-weight: bold;
  text-align: left; white-space: nowrap; cursor: pointer; }
th button:hover { text-decoration: underline; }
th button:focus-visible { outline-offset: -3px; }
th button::after { content: "\\2195"; margin-left: 4px; color: var(--muted); font-weight: normal; }
th[aria-sort=ascending] button::after { content: "\\2191"; color: var(--accent); font-weight: bold; }
th[aria-sort=descending] button::after { content: "\\2193"; color: var(--accent); font-weight: bold; }
footer { padding-top: 40px; padding-bottom: 40px; font-size: 0.875rem; }
@media (max-width: 759px) {
  header, main, footer { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 24px; }
  .figures { grid-template-columns: 1fr 1fr; }
  .figures div { padding: 12px 14px; }
  .figures strong { font-size: 1.375rem; }
  .chart { padding: 14px 14px; }
  .wide { display: none; }
  .narrow { display: block; }
  .narrow svg { width: 100%; max-width: 480px; }
  .legend { margin-top: 12px; }
  .search input { flex: 1 1 100%; }
}
@media print { .scroll, .scroll.tall { max-height: none; overflow: visible; } nav, .search, details { display: none; } }
"""

SCRIPT: Final = """
"use strict";
const table = document.getElementById("fleet-table");
if (table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows].map(row => {
    const cells = [...row.cells].map(cell => cell.textContent.trim());
    return {row, cells, text: cells.join("\\n").toLowerCase()};
  });
  const count = document.getElementById("count");
  const total = count.textContent;
  const order = new Intl.Collator("en", {numeric: true});

  document.getElementById("search").addEventListener("input", event => {
    const words = event.target.value.toLowerCase().split(/\\s+/);
    let shown = 0;
    for (const {row, text} of rows) {
      row.hidden = !words.every(word => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = shown === rows.length ? total : shown.toLocaleString("en") + " of " + total;
  });

  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(each => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const empty = each => each.cells[column] === "-";
    rows.sort((a, b) => empty(a) - empty(b) || (up ? 1 : -1) * order.compare(a.cells[column], b.cells[column]));
    body.append(...rows.map(each => each.row));
  }));
}
"""

PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>EC2 flight recorder</title>
<link rel="icon" href="data:,">
<style>$style</style>
</head>
<body>
<header>
<h1>EC2 flight recorder</h1>
<p>$extent All times are UTC.</p>
<nav aria-label="On this page"><ul>
<li><a href="#fleet">Fleet over time</a></li>
<li><a href="#coverage">Coverage</a></li>
<li><a href="#changes">What changed last</a></li>
<li><a href="#hours">Running hours</a></li>
<li><a href="#instances">Instances</a></li>
</ul></nav>
</header>
<main>
$oddities
$sections
</main>
<footer>Written at $written by history.py report.</footer>
<script>$script</script>
</body>
</html>
"""
