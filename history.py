#!/usr/bin/env python3
"""Answers questions from the log of the flight recorder, with DuckDB. docs/history.md says what the answers mean.

The log is a set of lines. Without its timestamp, the line of an instance stays the same from poll to poll until
something about the instance changes, so the log is read into each distinct line and the times at which it was
recorded, and all that follows looks at thousands of those and not at millions of records. An archive is that same
table, as Parquet.

All times are UTC, as in the log.
"""

from __future__ import annotations

import argparse
import csv
import glob
import io
import ipaddress
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Self

LOG: Final = "/var/log/inventory/inventory.log*"
"""Where deploy.yaml has it written and rotated."""

EXIT_FOUND: Final = 0
EXIT_NOTHING: Final = 1
EXIT_USAGE: Final = 2
EXIT_GAP: Final = 3
EXIT_BUG: Final = 70
EXIT_IO: Final = 74

VISIBLE: Final = timedelta(hours=1)
"""How long EC2 shows a terminated instance, about."""
GAP: Final = timedelta(minutes=65)
"""Of what may have come and gone in longer than this, something may have lived for over five minutes."""
CUT_OFF: Final = timedelta(hours=1)
"""A poll that left no poll line had ended by then: its deadline is under the hour."""
SAME_START: Final = timedelta(minutes=1)
"""The primary network interface is attached within this of the launch. No instance is stopped and started as fast."""

FIELDS: Final = {
    "account": "VARCHAR",
    "region": "VARCHAR",
    "instance_id": "VARCHAR",
    "state": "VARCHAR",
    "name": "VARCHAR",
    "instance_type": "VARCHAR",
    "availability_zone": "VARCHAR",
    "launch_time": "TIMESTAMP",
    "first_launch_time": "TIMESTAMP",
    "state_transition_reason": "VARCHAR",
    "state_transition_time": "TIMESTAMP",
    "private_ip_address": "VARCHAR",
    "public_ip_address": "VARCHAR",
    "ipv6_addresses": "VARCHAR[]",
    "vpc_id": "VARCHAR",
    "subnet_id": "VARCHAR",
    "security_groups": "VARCHAR[]",
    "image_id": "VARCHAR",
    "key_name": "VARCHAR",
    "iam_instance_profile": "VARCHAR",
    "architecture": "VARCHAR",
    "platform_details": "VARCHAR",
    "tenancy": "VARCHAR",
    "lifecycle": "VARCHAR",
    "owner_id": "VARCHAR",
    "reservation_id": "VARCHAR",
    "volumes": "VARCHAR[]",
    "managed_by": "VARCHAR",
    "tags": "MAP(VARCHAR, VARCHAR)",
}
"""An instance's record, and each field's type."""

LISTS: Final = [field for field, kind in FIELDS.items() if kind.endswith("[]")]
SCALARS: Final = [field for field in FIELDS if field not in ("account", "region", "tags", *LISTS)]

KEY: Final = "account, region, instance_id"
"""An instance, in a log of several accounts."""

MODIFIABLE: Final = [
    field
    for field in FIELDS
    if field not in KEY.split(", ")
    and field not in ("state", "name", "tags")
    and not field.endswith(("_time", "_reason"))
]
"""What can change without being a start, a stop or an end. Tags are looked at one by one."""

FINDABLE: Final = [
    field
    for field in FIELDS
    if field.endswith(("_id", "_address", "_addresses", "_groups", "_profile", "key_name", "volumes"))
    and field != "owner_id"
]


class UsageError(Exception):
    """What the command line asks for cannot be."""


class FileError(Exception):
    """A file cannot be read or written."""


# ---------------------------------------------------------------------------------------------------------------------
# The log as tables
# ---------------------------------------------------------------------------------------------------------------------

# What main.py writes begins with the timestamp, so the rest of the line is cut off by position, which is three times as
# fast as to parse it. A line that is written otherwise keeps its timestamp, and so does not meet its like.
READ_LOG: Final = """
SELECT CASE WHEN usual THEN substring(text, 39) WHEN ltrim(text)[1] = '{' THEN ltrim(text) WHEN text <> '' THEN '{}' END
        AS line,
    list(try_cast(CASE WHEN usual THEN substring(text, 16, 20) ELSE json ->> '$.timestamp' END AS TIMESTAMP)) AS times
FROM (
    SELECT json, json::VARCHAR AS text,
        starts_with(text, '{"timestamp": "') AND substring(text, 36, 3) = '", ' AS usual
    FROM read_ndjson_objects($logs, ignore_errors = true)
)
GROUP BY ALL
"""
READ_ARCHIVE: Final = "SELECT line, times FROM read_parquet($archives)"
MERGED: Final = "SELECT line, flatten(list(times)) AS times FROM ({source}) GROUP BY line"
# What has no time keeps as many nulls as it has lines.
ONCE: Final = "SELECT line, coalesce(nullif(list_distinct(times), []), times) AS times FROM ({source})"

SHAPE: Final = json.dumps(
    {field: kind if kind[-1] != "]" else [kind[:-2]] for field, kind in FIELDS.items()}
    | {
        **dict.fromkeys(("record", "status", "arn", "user_id", "version"), "VARCHAR"),
        **dict.fromkeys(("instances", "pages"), "BIGINT"),
        "seconds": "DOUBLE",
        "complete": "BOOLEAN",
        "error": {"code": "VARCHAR", "message": "VARCHAR"},
        "regions": "MAP(VARCHAR, BIGINT)",
    }
)
"""What is read of any line. What is of another type there, or not there at all, is null."""

# Parsed where it is read, which two cores do together; a table of less than 100,000 rows is read by one.
LINES: Final = """
CREATE TABLE lines AS
SELECT line, times, len(times) AS sightings, list_min(times) AS first_seen, list_max(times) AS last_seen,
    json_keys(json) AS keys, json_transform(json, $shape) AS r
FROM (SELECT line, times, CASE WHEN starts_with(line, '{{') THEN line ELSE '{{' || line END AS json FROM ({source}))
"""

PARTS: Final = f"""
CREATE TABLE faces AS
WITH told AS (
    SELECT rowid AS face, sightings, first_seen, last_seen,
        coalesce(r.account, 'unknown') AS account, coalesce(r.region, 'unknown') AS region,
        {", ".join(f"r.{field}" for field in SCALARS)},
        {", ".join(f"list_sort(coalesce(r.{field}, [])) AS {field}" for field in LISTS)},
        coalesce(r.tags, MAP {{}}) AS tags,
        list_filter({list(FIELDS)!r}, lambda field: NOT list_contains(keys, field)) AS lacking
    FROM lines
    WHERE r.record = 'instance' AND r.instance_id IS NOT NULL AND first_seen IS NOT NULL
)
-- Numbers in place of what tells accounts, regions and instances apart: millions of sightings are sorted by them.
SELECT *, dense_rank() OVER (ORDER BY account, region) AS place, dense_rank() OVER (ORDER BY {KEY}) AS instance
FROM told;

-- How many lines each poll has of each region's instances, and how many of those bear a tag.
CREATE TABLE counted AS
SELECT account, region, timestamp, lines, tagged
FROM (
    SELECT place, timestamp, count(*) AS lines, count_if(bears_tags) AS tagged
    FROM (
        SELECT place, cardinality(tags) > 0 AS bears_tags, unnest(times) AS timestamp
        FROM faces JOIN lines ON lines.rowid = face
    )
    GROUP BY place, timestamp
)
JOIN (SELECT DISTINCT place, account, region FROM faces) USING (place);

CREATE TABLE region_lines AS
SELECT unnest(times) AS timestamp, coalesce(r.account, 'unknown') AS account, coalesce(r.region, 'unknown') AS region,
    r.status, r.instances, r.pages, r.seconds, r.error.code AS error_code, r.error.message AS error_message
FROM lines
WHERE r.record = 'region' AND first_seen IS NOT NULL;

CREATE TABLE poll_lines AS
SELECT unnest(times) AS timestamp, r.account, r.arn, r.user_id, coalesce(r.complete, false) AS complete, r.instances,
    r.seconds, r.version, r.error.code AS error_code, r.error.message AS error_message,
    coalesce(list_sum(map_values(r.regions)), 0) AS regions
FROM lines
WHERE r.record = 'poll' AND first_seen IS NOT NULL
"""

BEFORES: Final = ",\n            ".join(
    f"lag(CASE WHEN NOT list_contains(lacking, '{field}') THEN {{'value': {field}, 'until': last_seen}} END"
    f" IGNORE NULLS) OVER (PARTITION BY {KEY} ORDER BY n) AS {field}_before"
    for field in MODIFIABLE
)
"""What each field was when it was last told."""


def _text(value: str, field: str) -> str:
    return f"to_json({value})::VARCHAR" if field in LISTS else f"{value}::VARCHAR"


MODIFICATIONS: Final = ",\n            ".join(
    f"CASE WHEN {field}_before IS NOT NULL AND {field} IS DISTINCT FROM {field}_before.value"
    f" AND NOT list_contains(lacking, '{field}') THEN {{'field': '{field}', 'since': {field}_before.until,"
    f" 'before': {_text(field + '_before.value', field)}, 'after': {_text(field, field)}}} END"
    for field in MODIFIABLE
)

ARCHIVED: Final = "SELECT line, list_sort(times) AS times FROM lines WHERE line IS NOT NULL AND first_seen IS NOT NULL"
ARCHIVE_FORMAT: Final = "(FORMAT parquet, COMPRESSION zstd, PARQUET_VERSION v2, ROW_GROUP_SIZE 8192)"

KNOWN: Final = {
    "instance": {"record", *FIELDS, "details"},
    "region": {"record", "account", "region", "status", "instances", "tagged", "pages", "seconds", "error"},
    "poll": {"record", "account", "arn", "user_id", "complete", "instances", "states", "regions", "seconds"}
    | {"version", "error"},
}
"""What a line of each kind has, beside its timestamp. Only `details` need not be there."""


def _names(lists: str) -> str:
    return f"array_to_string(list_sort(list_distinct(flatten(list({lists})))), ', ')"


ODDITIES: Final = f"""
WITH keyed AS (
    SELECT sightings, keys,
        CASE r.record
            {" ".join(f"WHEN '{kind}' THEN {sorted(fields)!r}" for kind, fields in KNOWN.items())}
        END AS known
    FROM lines
    WHERE first_seen IS NOT NULL AND (r.record <> 'instance' OR r.instance_id IS NOT NULL)
), listed AS (
    SELECT sightings, list_filter(keys, lambda key: NOT list_contains(list_append(known, 'timestamp'), key)) AS unknown,
        list_filter(known, lambda key: key <> 'details' AND NOT list_contains(keys, key)) AS missing
    FROM keyed
    WHERE known IS NOT NULL
)
SELECT 1 AS number, sum(sightings), 'lines that are no JSON' FROM lines WHERE line IS NULL
UNION ALL
SELECT 2 AS number, sum(sightings), 'lines that are no records' FROM lines
WHERE line IS NOT NULL AND (
    first_seen IS NULL OR coalesce(r.record NOT IN {(*KNOWN, "log")!r}, true)
    OR r.record = 'instance' AND r.instance_id IS NULL
)
UNION ALL
SELECT 3 AS number, count(*), 'polls that were cut off' FROM polls WHERE cut_off
UNION ALL
SELECT 4 AS number, sum(sightings), 'lines with fields unknown here (' || {_names("unknown")} || ')'
FROM listed WHERE len(unknown) > 0
UNION ALL
SELECT 5 AS number, sum(sightings), 'lines without fields of today (' || {_names("missing")} || ')'
FROM listed WHERE len(missing) > 0
ORDER BY number
"""

TABLES: Final = f"""
-- What the polls of one account in one second say together: almost always that is one poll.
CREATE TABLE polls AS
WITH blocks AS (
    SELECT account, timestamp FROM counted
    UNION SELECT account, timestamp FROM region_lines
    UNION SELECT account, timestamp FROM poll_lines
), regions AS (
    SELECT account, timestamp, count(*) AS lines FROM region_lines GROUP BY ALL
), said AS (
    SELECT account, timestamp, max(seconds) AS seconds, bool_and(complete) AS complete, sum(regions) AS regions,
        sum(instances)::BIGINT AS instances, max(arn) AS arn, max(user_id) AS user_id, max(version) AS version,
        max(error_code) AS error_code, max(error_message) AS error_message
    FROM poll_lines
    GROUP BY ALL
), joined AS (
    SELECT blocks.*, said.* EXCLUDE (account, timestamp),
        said.regions IS NULL OR coalesce(lines, 0) > said.regions AS cut_off
    FROM blocks
    LEFT JOIN regions ON regions.account = blocks.account AND regions.timestamp = blocks.timestamp
    LEFT JOIN said ON said.account IS NOT DISTINCT FROM blocks.account AND said.timestamp = blocks.timestamp
), timed AS (
    -- The timestamp is the second in which the poll began, so it ended up to a second after their sum.
    SELECT *, timestamp + CASE
        WHEN seconds BETWEEN 0 AND 1e9 AND NOT cut_off
            THEN INTERVAL '1 second' + to_milliseconds(ceil(seconds * 1000)::BIGINT)
        ELSE INTERVAL '{CUT_OFF.seconds} seconds'
    END AS ended
    FROM joined
)
SELECT timestamp, account, ended, coalesce(complete, false) AND NOT cut_off AS complete, cut_off, arn, user_id,
    instances, seconds, version, error_code, error_message,
    max(ended) OVER (PARTITION BY account ORDER BY timestamp) AS all_ended
FROM timed;

CREATE TABLE regions AS
WITH joined AS (
    SELECT account, region, timestamp, CASE WHEN bool_or(status = 'ok') THEN 'ok' ELSE max(status) END AS status,
        max(instances) AS instances, max(pages) AS pages, max(seconds) AS seconds,
        max(error_code) AS error_code, max(error_message) AS error_message
    FROM region_lines
    GROUP BY ALL
)
SELECT timestamp, account, region, status,
    coalesce(status = 'ok' AND NOT cut_off AND coalesce(lines, 0) >= r.instances, false) AS covered,
    r.instances, coalesce(lines, 0) AS lines, coalesce(tagged, 0) AS tagged, pages, r.seconds, r.error_code,
    r.error_message, ended, cut_off
FROM joined AS r
JOIN polls USING (account, timestamp)
LEFT JOIN counted USING (account, region, timestamp);

-- A face, apart where its region's tags were told and where they were not: where nothing in a region bears a tag, that
-- an instance has none says nothing.
CREATE TABLE pieces AS
WITH untold AS (
    SELECT account, region, timestamp FROM counted WHERE tagged = 0
), doubtful AS (
    SELECT face, account, region, timestamp
    FROM (
        SELECT face, account, region, unnest(times) AS timestamp
        FROM faces SEMI JOIN untold USING (account, region) JOIN lines ON lines.rowid = face
        WHERE cardinality(tags) = 0
    )
)
SELECT face, NOT list_contains(lacking, 'tags') AS tags_told, first_seen, last_seen, sightings,
    NULL::TIMESTAMP[] AS times
FROM faces
WHERE cardinality(tags) > 0 OR (account, region) NOT IN (SELECT (account, region) FROM untold)
UNION ALL
SELECT face, false, min(timestamp), max(timestamp), count(*), list(timestamp)
FROM doubtful SEMI JOIN untold USING (account, region, timestamp)
GROUP BY face
UNION ALL
SELECT face, true, min(timestamp), max(timestamp), count(*), list(timestamp)
FROM doubtful ANTI JOIN untold USING (account, region, timestamp)
GROUP BY face;

-- From when to when an instance was recorded with one face, as its n-th.
CREATE TABLE spans AS
WITH limits AS (
    SELECT instance, pieces.*, max(pieces.last_seen) OVER (
        PARTITION BY instance ORDER BY pieces.first_seen, face, tags_told
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS seen_before
    FROM pieces JOIN faces USING (face)
), tangled AS (
    SELECT DISTINCT instance FROM limits WHERE first_seen <= seen_before
), numbered AS (
    SELECT instance, face, tags_told, coalesce(limits.times, lines.times) AS times,
        row_number() OVER (ORDER BY line, tags_told) AS piece
    FROM limits SEMI JOIN tangled USING (instance) JOIN lines ON lines.rowid = face
), sightings AS (
    SELECT instance, piece, unnest(times) AS timestamp FROM numbered
), marked AS (
    SELECT instance, piece, timestamp, row_number() OVER following AS position,
        lag(piece) OVER following IS DISTINCT FROM piece AS is_first,
        lead(piece) OVER following IS DISTINCT FROM piece AS is_last
    FROM sightings
    WINDOW following AS (PARTITION BY instance ORDER BY timestamp, piece)
), untangled AS (
    SELECT instance, piece, is_first, timestamp AS first_seen, position,
        CASE WHEN is_last THEN timestamp ELSE lead(timestamp) OVER following END AS last_seen,
        CASE WHEN is_last THEN 1 ELSE lead(position) OVER following - position + 1 END AS sightings
    FROM marked
    WHERE is_first OR is_last
    WINDOW following AS (PARTITION BY instance ORDER BY position)
), together AS (
    SELECT instance, face, tags_told, first_seen, last_seen, sightings, 0 AS position
    FROM limits ANTI JOIN tangled USING (instance)
    UNION ALL
    SELECT untangled.instance, face, tags_told, first_seen, last_seen, sightings, position
    FROM untangled JOIN numbered USING (piece)
    WHERE is_first
)
SELECT faces.account, region, instance_id, row_number() OVER following AS n, together.first_seen,
    first_poll.ended AS first_ended,
    together.last_seen, last_poll.ended AS last_ended, last_poll.all_ended AS all_ended, together.sightings,
    faces.* EXCLUDE ({KEY}, face, place, instance, sightings, first_seen, last_seen, tags),
    state IN ('pending', 'running') AS runs, state IN ('shutting-down', 'terminated') AS ends,
    -- Those of an instance that ends are going: what counts is what was told before.
    CASE WHEN tags_told AND NOT ends THEN tags END AS told,
    coalesce(last_value(told IGNORE NULLS) OVER following, first_value(faces.tags) OVER following) AS tags
FROM together
JOIN faces USING (face, instance)
JOIN polls AS first_poll ON first_poll.account = faces.account AND first_poll.timestamp = together.first_seen
JOIN polls AS last_poll ON last_poll.account = faces.account AND last_poll.timestamp = together.last_seen
WINDOW following AS (PARTITION BY faces.instance ORDER BY together.first_seen, position);

-- From when to when each instance existed. Earliest and latest are the same where AWS gave the time.
CREATE TABLE lives AS
WITH seen AS (
    SELECT {KEY}, min(first_seen) AS first_seen, max(last_seen) AS last_seen, max(all_ended) AS all_ended,
        sum(sightings)::BIGINT AS sightings, arg_min(first_ended, n) AS first_ended,
        arg_min(launch_time, n) AS first_start, max(launch_time) AS last_start,
        min(CASE WHEN first_launch_time IS NOT NULL THEN least(first_launch_time, launch_time) END) AS launched,
        max(n) FILTER (NOT ends) AS last_alive, max(last_seen) FILTER (NOT ends) AS alive_until,
        arg_max(state, n) AS last_state,
        coalesce(arg_max(instance_type, n) FILTER (NOT ends), arg_max(instance_type, n)) AS instance_type,
        arg_max(tags, n) AS tags
    FROM spans
    GROUP BY ALL
), begun AS (
    SELECT seen.*,
        coalesce(launched, least(first_ended, first_start)) AS begin_latest,
        coalesce(launched, CASE WHEN looked.timestamp <= begin_latest THEN looked.timestamp END) AS begin_earliest
    FROM seen
    ASOF LEFT JOIN (
        SELECT account, region, ended, max(timestamp) AS timestamp FROM regions WHERE covered GROUP BY ALL
    ) AS looked
        ON looked.account = seen.account AND looked.region = seen.region AND looked.ended <= seen.first_seen
), ending AS (
    SELECT {KEY}, any_value(since) AS since, any_value(until) AS until,
        min(state_transition_time) FILTER (state_transition_time BETWEEN since AND until) AS given
    FROM (
        SELECT {KEY}, state_transition_time, coalesce(alive_until, last_start, begun.first_seen) AS since,
            first_value(spans.first_ended) OVER (PARTITION BY {KEY} ORDER BY n) AS until
        FROM spans JOIN begun USING ({KEY})
        WHERE ends AND n > coalesce(last_alive, 0)
    )
    GROUP BY {KEY}
), after AS (
    SELECT account, region, timestamp,
        min(ended) OVER (PARTITION BY account, region ORDER BY timestamp DESC) AS ended
    FROM regions
    WHERE covered
), uncovered AS (
    SELECT account, region, max(timestamp) AS timestamp
    FROM (
        SELECT account, region, timestamp FROM regions WHERE NOT covered
        UNION ALL
        SELECT account, region, polls.timestamp
        FROM polls JOIN (SELECT DISTINCT account, region FROM regions) USING (account)
        WHERE cut_off
    )
    GROUP BY ALL
)
SELECT {KEY}, tags['Name'] AS name, instance_type, last_state AS state, begin_earliest, begin_latest,
    begun.first_seen, begun.last_seen, sightings,
    coalesce(given, since, CASE WHEN after.ended IS NOT NULL THEN begun.last_seen END) AS end_earliest,
    coalesce(given, until, after.ended) AS end_latest,
    CASE
        WHEN until IS NOT NULL THEN 'seen terminated'
        WHEN after.ended IS NOT NULL THEN 'vanished unseen'
        WHEN uncovered.timestamp > begun.last_seen THEN 'not covered'
        ELSE 'present'
    END AS fate,
    tags
FROM begun
LEFT JOIN ending USING ({KEY})
ASOF LEFT JOIN after
    ON after.account = begun.account AND after.region = begun.region AND after.timestamp >= begun.all_ended
LEFT JOIN uncovered ON uncovered.account = begun.account AND uncovered.region = begun.region;

-- From when to when each instance ran. A start is known by its launch_time, whatever was seen of it.
CREATE TABLE runs AS
WITH periods AS (
    SELECT {KEY}, launch_time, min(n) AS first_n, max(n) FILTER (runs) AS last_running,
        max(last_seen) FILTER (runs) AS running_until,
        lead(launch_time) OVER (PARTITION BY {KEY} ORDER BY first_n) AS next_start
    FROM spans
    WHERE launch_time IS NOT NULL
    GROUP BY {KEY}, launch_time
), stops AS (
    SELECT {KEY}, launch_time, any_value(since) AS since, any_value(until) AS until, arg_min(ends, n) AS ends,
        min(state_transition_time) FILTER (state_transition_time BETWEEN since AND until) AS given
    FROM (
        SELECT {KEY}, launch_time, n, ends, state_transition_time, coalesce(running_until, launch_time) AS since,
            first_value(first_ended) OVER (PARTITION BY {KEY}, launch_time ORDER BY n) AS until
        FROM spans JOIN periods USING ({KEY}, launch_time)
        WHERE n > coalesce(last_running, 0)
    )
    GROUP BY {KEY}, launch_time
)
SELECT {KEY}, launch_time, first_n, last_running, running_until,
    CASE
        WHEN until IS NOT NULL THEN coalesce(given, since)
        WHEN next_start IS NOT NULL THEN running_until
        ELSE end_earliest
    END AS end_earliest,
    CASE
        WHEN until IS NOT NULL THEN coalesce(given, until)
        WHEN next_start IS NOT NULL THEN greatest(next_start, running_until)
        ELSE end_latest
    END AS end_latest,
    coalesce(NOT ends, next_start IS NOT NULL) AS stopped
FROM periods
LEFT JOIN stops USING ({KEY}, launch_time)
JOIN lives USING ({KEY});

CREATE VIEW instances AS
SELECT unnest(times) AS timestamp, {", ".join(f"faces.{field}" for field in FIELDS)},
    CASE WHEN starts_with(line, '{{') THEN line ELSE '{{' || line END -> '$.details' AS details
FROM faces JOIN lines ON lines.rowid = face;

CREATE VIEW changes AS
WITH steps AS (
    SELECT {KEY}, first_ended, list_concat(
        list_filter([{MODIFICATIONS}], lambda change: change IS NOT NULL),
        CASE WHEN told IS NOT NULL AND tags_before IS NOT NULL THEN list_transform(
            list_filter(
                list_distinct(list_concat(map_keys(told), map_keys(tags_before.value))),
                lambda key: told[key] IS DISTINCT FROM tags_before.value[key]
            ),
            lambda key: {{
                'field': 'tag:' || key, 'since': tags_before.until, 'before': tags_before.value[key], 'after': told[key]
            }}
        ) ELSE [] END
    ) AS modified
    FROM (
        SELECT *,
            {BEFORES},
            lag(CASE WHEN told IS NOT NULL THEN {{'value': told, 'until': last_seen}} END IGNORE NULLS)
                OVER (PARTITION BY {KEY} ORDER BY n) AS tags_before
        FROM spans
        WHERE NOT ends
    )
)
SELECT time_earliest, time_latest, event, {KEY}, name, field, before, after
FROM (
    SELECT {KEY}, begin_earliest AS time_earliest, begin_latest AS time_latest, 'launched' AS event,
        NULL::VARCHAR AS field, NULL::VARCHAR AS before, NULL::VARCHAR AS after
    FROM lives
    UNION ALL
    SELECT {KEY}, launch_time, launch_time, 'started', NULL, NULL, NULL
    FROM runs JOIN lives USING ({KEY})
    WHERE first_n > 1
        OR begin_earliest = begin_latest AND launch_time > begin_latest + INTERVAL '{SAME_START.seconds} seconds'
    UNION ALL
    SELECT {KEY}, end_earliest, end_latest, 'stopped', NULL, NULL, NULL FROM runs WHERE stopped
    UNION ALL
    SELECT {KEY}, end_earliest, end_latest, CASE fate WHEN 'seen terminated' THEN 'terminated' ELSE 'vanished' END,
        NULL, NULL, NULL
    FROM lives
    WHERE end_latest IS NOT NULL
    UNION ALL
    SELECT {KEY}, each.since, first_ended, 'modified', each.field, each.before, each.after
    FROM (SELECT * EXCLUDE modified, unnest(modified) AS each FROM steps WHERE len(modified) > 0)
)
JOIN lives USING ({KEY})
"""


AT: Final = f"""
WITH alive AS (
    SELECT spans.*, end_earliest AS run_end, lead(n) OVER following AS next_n,
        lead(launch_time) OVER following AS next_start, lead(spans.runs) OVER following AS next_runs,
        lead(run_end) OVER following AS next_run_end
    FROM spans
    LEFT JOIN (
        SELECT {KEY}, launch_time, end_earliest FROM runs WHERE end_earliest = end_latest
    ) USING ({KEY}, launch_time)
    WHERE NOT ends
    WINDOW following AS (PARTITION BY {KEY} ORDER BY n)
), last_then AS (
    SELECT * FROM alive
    QUALIFY row_number() OVER (
        PARTITION BY {KEY} ORDER BY first_seen <= $time DESC, CASE WHEN first_seen <= $time THEN -n ELSE n END
    ) = 1
), judged AS (
    SELECT lives.*, last_then.n, next_n, last_then.first_seen <= $time AND $time <= last_ended AS within,
        -- From when on the next span is right about the state, if AWS tells.
        CASE
            WHEN launch_time = next_start THEN CASE WHEN run_alive AND NOT next_runs THEN run_end END
            WHEN next_runs THEN next_start
            ELSE next_run_end
        END AS switches_at,
        NOT within AND first_seen_then <= $time AND $time >= switches_at AS is_next,
        CASE
            WHEN within THEN 'agreed'
            WHEN is_next THEN 'exact'
            WHEN first_seen_then > $time THEN
                CASE WHEN $time >= CASE WHEN run_alive THEN launch_time ELSE run_end END THEN 'exact' ELSE 'bounded' END
            WHEN next_n IS NULL AND fate IN ('present', 'not covered') THEN 'last'
            WHEN next_n IS NULL THEN CASE WHEN lives.end_earliest = lives.end_latest THEN 'exact' ELSE 'bounded' END
            WHEN launch_time = next_start THEN CASE WHEN $time < switches_at THEN 'exact' ELSE 'bounded' END
            WHEN NOT run_alive AND $time < next_start THEN 'exact'
            ELSE 'bounded'
        END AS known
    FROM lives
    LEFT JOIN (SELECT *, runs AS run_alive, first_seen AS first_seen_then FROM last_then) AS last_then USING ({KEY})
    WHERE coalesce(lives.begin_earliest <= $time, true) AND coalesce(lives.end_latest > $time, true)
)
SELECT {KEY}, spans.tags['Name'] AS name, CASE WHEN NOT ends THEN spans.state END AS state, spans.instance_type,
    availability_zone, private_ip_address, public_ip_address, launch_time, spans.first_seen, spans.last_seen,
    coalesce(known, 'bounded') AS known
FROM judged
JOIN spans USING ({KEY})
WHERE spans.n = coalesce(CASE WHEN is_next THEN next_n ELSE judged.n END, 1)
ORDER BY account, region, name, instance_id
"""

MATCHES: Final = ", ".join(
    f"CASE WHEN list_contains({field}, {value}) THEN '{field}' END"
    if field in LISTS
    else f"CASE WHEN {field} = {value} THEN '{field}' END"
    for field in FINDABLE
    for value in ["$address" if "_address" in field else "$value"]
)

FIND: Final = f"""
WITH matched AS (
    SELECT *, list_filter(
        list_concat([{MATCHES}], list_transform(
            list_filter(
                map_entries(coalesce(told, CASE WHEN asked_of_ending THEN tags END)),
                lambda tag: tag.value = $value OR tag.key || '=' || tag.value = $value
            ),
            lambda tag: 'tag:' || tag.key
        )),
        lambda field: field IS NOT NULL
    ) AS matching
    FROM (SELECT *, ends AND bool_and(ends) OVER (PARTITION BY {KEY}) AND n = 1 AS asked_of_ending FROM spans)
    WHERE NOT ends OR asked_of_ending
), fields AS (
    SELECT DISTINCT {KEY}, unnest(matching) AS field FROM matched
), observed AS (
    SELECT {KEY}, n, field, first_seen, first_ended, last_seen, ends, list_contains(matching, field) AS has
    FROM matched JOIN fields USING ({KEY})
    WHERE CASE
        WHEN starts_with(field, 'tag:') THEN told IS NOT NULL OR asked_of_ending
        ELSE NOT list_contains(lacking, field)
    END
), edges AS (
    SELECT *, lag(has) OVER sequence AS had, lag(last_seen) OVER sequence AS seen_before,
        lead(first_ended) OVER sequence AS next_ended,
        lag(n) OVER sequence IS NULL AS is_first, lead(n) OVER sequence IS NULL AS is_last
    FROM observed
    WINDOW sequence AS (PARTITION BY {KEY}, field ORDER BY n)
), islands AS (
    SELECT *, count_if(had IS DISTINCT FROM has) OVER (PARTITION BY {KEY}, field ORDER BY n) AS island FROM edges
), held AS (
    SELECT {KEY}, field, min(first_seen) AS first_seen, max(last_seen) AS last_seen,
        arg_min(first_ended, n) AS first_ended, arg_min(seen_before, n) AS seen_before,
        arg_max(next_ended, n) AS next_ended, bool_or(is_first) AS is_first, bool_or(is_last) AS is_last,
        bool_or(ends) AS ends
    FROM islands
    WHERE has
    GROUP BY {KEY}, field, island
)
SELECT field, $value AS value, {KEY}, name,
    CASE WHEN held.is_first THEN begin_earliest ELSE seen_before END AS begin_earliest,
    CASE WHEN whole_life THEN begin_latest ELSE first_ended END AS begin_latest,
    held.first_seen, held.last_seen,
    CASE WHEN held.is_last THEN end_earliest ELSE held.last_seen END AS end_earliest,
    CASE WHEN held.is_last THEN end_latest ELSE next_ended END AS end_latest,
    fate
FROM (
    SELECT *, is_first AND (ends OR field IN ('instance_id', 'private_ip_address')) AS whole_life FROM held
) AS held
JOIN lives USING ({KEY})
"""

HOURS: Final = f"""
WITH valued AS (
    SELECT {KEY}, launch_time, n, runs.last_running, runs.running_until, runs.end_earliest, runs.end_latest,
        CASE WHEN fate = 'not covered' THEN TIMESTAMP 'infinity' ELSE runs.running_until END AS may_run_until,
        spans.first_ended, spans.last_seen, {{values}}, {{tells}} AS tells
    FROM runs JOIN spans USING ({KEY}, launch_time) JOIN (SELECT {KEY}, fate FROM lives) USING ({KEY})
    WHERE spans.runs OR runs.last_running IS NULL AND spans.n = runs.first_n
    QUALIFY tells OR NOT bool_or(tells) OVER (PARTITION BY {KEY}, launch_time)
), marked AS (
    SELECT *, ({{names}}) IS DISTINCT FROM lag(({{names}})) OVER following AS is_first
    FROM valued
    WINDOW following AS (PARTITION BY {KEY}, launch_time ORDER BY n)
), numbered AS (
    SELECT *, count_if(is_first) OVER (PARTITION BY {KEY}, launch_time ORDER BY n) AS island FROM marked
), segments AS (
    SELECT {KEY}, launch_time, island, {{names}}, any_value(running_until) AS running_until,
        any_value(end_earliest) AS end_earliest, any_value(end_latest) AS end_latest,
        any_value(may_run_until) AS may_run_until, arg_min(first_ended, n) AS first_ended, max(last_seen) AS last_seen
    FROM numbered
    GROUP BY {KEY}, launch_time, island, {{names}}
), bounded AS (
    SELECT {KEY}, {{names}},
        coalesce(lag(last_seen) OVER parts, launch_time) AS begin_earliest,
        CASE WHEN lag(island) OVER parts IS NULL THEN launch_time ELSE first_ended END AS begin_latest,
        CASE WHEN lead(island) OVER parts IS NULL THEN coalesce(segments.end_earliest, running_until) ELSE last_seen END
            AS end_earliest,
        coalesce(lead(first_ended) OVER parts, segments.end_latest, may_run_until) AS end_latest
    FROM segments
    WINDOW parts AS (PARTITION BY {KEY}, launch_time ORDER BY island)
), clipped AS (
    SELECT {KEY}, {{names}},
        greatest(0, epoch(least(end_earliest, $until)) - epoch(greatest(begin_latest, $since))) AS least,
        greatest(0, epoch(least(end_latest, $until)) - epoch(greatest(begin_earliest, $since))) AS most
    FROM bounded
)
SELECT {{columns}}, count(DISTINCT ({KEY})) AS instances, round(sum(least + most) / 7200, 3) AS hours,
    round(sum(most - least) / 7200, 3) AS error
FROM clipped
WHERE most > 0
GROUP BY {{names}}
ORDER BY hours DESC, {{names}}
"""

COVERAGE: Final = """
WITH last_polls AS (
    -- A poll without identity may have been of any account.
    SELECT named.account, max(timestamp) AS last_poll
    FROM polls JOIN (SELECT DISTINCT account FROM polls) AS named ON coalesce(polls.account = named.account, true)
    GROUP BY named.account
), asked AS (
    SELECT account, region, least(min(timestamp), $since) AS opens, greatest(any_value(last_poll), $until) AS closes
    FROM regions JOIN last_polls USING (account)
    GROUP BY account, region
    HAVING NOT bool_and(status IS NOT DISTINCT FROM 'not-enabled')
), looks AS (
    SELECT account, region, timestamp, ended, opens, closes,
        min(ended) OVER (PARTITION BY account, region ORDER BY timestamp DESC) AS ended_by
    FROM regions JOIN asked USING (account, region)
    WHERE covered OR status = 'not-enabled' AND NOT cut_off
), stretches AS (
    -- From each look to the next, and what is before the first and after the last.
    SELECT account, region, timestamp AS begin, ended, true AS looked,
        coalesce(lead(ended_by) OVER (PARTITION BY account, region ORDER BY timestamp), closes) AS until
    FROM looks
    UNION ALL
    SELECT account, region, opens, NULL, false, coalesce(min(ended_by), closes)
    FROM asked LEFT JOIN looks USING (account, region, opens, closes)
    GROUP BY account, region, opens, closes
    HAVING coalesce(min(timestamp) > opens, true)
), judged AS (
    SELECT *, until - begin > $gap AS is_gap FROM stretches
), numbered AS (
    -- The gap is after the look that it begins with.
    SELECT *, count_if(is_gap) OVER (PARTITION BY account, region ORDER BY begin, looked) - is_gap::INT AS island
    FROM judged
), gaps AS (
    SELECT account, region, begin, until FROM judged WHERE is_gap
), missed AS (
    SELECT gaps.*, CASE
        WHEN polls.account IS NULL THEN 'without identity'
        WHEN polls.cut_off THEN 'cut off'
        WHEN regions.region IS NULL THEN 'did not ask'
        WHEN regions.status = 'ok' THEN 'lacking lines'
        ELSE concat_ws(': ', coalesce(regions.status, 'without status'), regions.error_code)
    END AS what
    FROM gaps
    JOIN polls ON (polls.account = gaps.account OR polls.account IS NULL)
        AND polls.timestamp BETWEEN gaps.begin AND gaps.until
    LEFT JOIN regions
        ON regions.account = polls.account AND regions.region = gaps.region AND regions.timestamp = polls.timestamp
    WHERE NOT coalesce(regions.covered OR regions.status = 'not-enabled' AND NOT regions.cut_off, false)
), reasons AS (
    SELECT account, region, begin, string_agg(number || ' ' || what, ', ' ORDER BY number DESC, what) AS reason
    FROM (SELECT account, region, begin, what, count(*) AS number FROM missed GROUP BY ALL)
    GROUP BY ALL
)
SELECT * FROM (
    SELECT account, region, 'covered' AS status, min(begin) AS begin, max(ended) AS "end", count(*) AS polls,
        NULL::DOUBLE AS unseen_hours, NULL AS reason
    FROM numbered
    WHERE looked
    GROUP BY account, region, island
    UNION ALL
    SELECT account, region, 'gap', begin, until, 0, greatest(0, round(epoch(until - begin - $visible) / 3600, 3)),
        coalesce(reason, 'no poll')
    FROM gaps LEFT JOIN reasons USING (account, region, begin)
    UNION ALL
    -- Where no region was ever asked, everything is a gap.
    SELECT NULL, NULL, 'gap', least(min(timestamp), $since) AS opens, greatest(max(timestamp), $until) AS closes, 0,
        greatest(0, round(epoch(closes - opens - $visible) / 3600, 3)),
        CASE count(*) WHEN 0 THEN 'no poll' ELSE count(*) || ' that asked no region' END
    FROM polls
    HAVING closes - opens > $gap AND (SELECT count(*) FROM regions) = 0
)
WHERE "end" >= coalesce($since, TIMESTAMP '-infinity') AND begin <= coalesce($until, TIMESTAMP 'infinity')
ORDER BY account, region, begin, status
"""

# ---------------------------------------------------------------------------------------------------------------------
# The questions
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    columns: list[str]
    rows: list[tuple[Any, ...]]


@dataclass(frozen=True)
class Window:
    """What is asked for overlaps this, both ends included. None is as early or as late as the log goes."""

    since: datetime | None = None
    until: datetime | None = None


class History:
    """The log as tables in memory, and what they answer."""

    def __init__(self, logs: Sequence[str], archives: Sequence[str] = ()) -> None:
        """Read logs, plain or compressed, and archives. Raises FileError."""
        # Here and not above: the import takes a tenth of a second, which --help need not wait for.
        import duckdb

        # Not the working directory, where DuckDB would put what does not fit into memory.
        self._spill = tempfile.TemporaryDirectory(prefix="history-")
        self._connection = duckdb.connect(
            config={
                "temp_directory": self._spill.name,
                "max_temp_directory_size": "8GB",  # the poller writes to the same disk
                "preserve_insertion_order": False,
            }
        )
        self._connection.execute("SET TimeZone = 'UTC'")
        source = " UNION ALL ".join([READ_LOG] * bool(logs) + [READ_ARCHIVE] * bool(archives))
        if len(archives) + bool(logs) > 1:
            source = MERGED.format(source=source)
        if logs or len(archives) > 1:  # in an archive, each time is there once
            source = ONCE.format(source=source)
        # DuckDB would take a name for a pattern.
        files = {
            name: [glob.escape(path) for path in paths]
            for name, paths in (("logs", logs), ("archives", archives))
            if paths
        }
        try:
            self._connection.execute(LINES.format(source=source), {"shape": SHAPE, **files})
        except duckdb.Error as error:
            self.close()
            raise FileError(f"the log cannot be read: {_first_line(error)}") from error
        lines, records = self.one("SELECT count(*), count(*) FILTER (r.record IS NOT NULL) FROM lines")
        if lines and not records:
            self.close()
            raise FileError("the log cannot be read: no line of it is a record (a compressed one is named .gz or .zst)")
        self._connection.execute(PARTS)
        self._connection.execute(TABLES)

    def close(self) -> None:
        self._connection.close()
        self._spill.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def ask(self, query: str, **parameters: object) -> Answer:
        """What a SELECT gives. Raises duckdb.Error."""
        cursor = self._connection.execute(query, parameters)
        return Answer([column[0] for column in cursor.description], cursor.fetchall())

    def one(self, query: str, **parameters: object) -> tuple[Any, ...]:
        """The only row."""
        (row,) = self.ask(query, **parameters).rows
        return row

    def oddities(self) -> list[str]:
        """What of the log is not in the answers, or only in part."""
        return [f"{phrase}: {count:,}" for _, count, phrase in self.ask(ODDITIES).rows if count]

    def extent(self) -> tuple[datetime | None, datetime | None]:
        """When the first and the last poll began."""
        first, last = self.one("SELECT min(timestamp), max(timestamp) FROM polls")
        return first, last

    def at(self, time: datetime | None) -> Answer:
        """The fleet as it was at `time`, or else at the end of the last poll."""
        return self.ask(AT, time=time or self.one("SELECT max(ended) FROM polls")[0])

    def find(self, value: str, window: Window) -> Answer:
        """Who had this value, and from when to when."""
        address = value
        with suppress(ValueError):
            address = str(ipaddress.ip_address(value))  # of the many ways to write an IPv6 address, EC2's
        order = f"begin_latest, {KEY}, field"
        return self._within(window, FIND, "begin", "end", order, value=value, address=address)

    def changes(self, window: Window, instance_id: str | None = None) -> Answer:
        """All that changed; for one instance, with what has become of it."""
        order = f"time_latest, time_earliest, {KEY}, event, field"
        if instance_id is None:
            return self._within(window, "SELECT * FROM changes", "time", "time", order)
        timeline = f"""
            SELECT * FROM changes WHERE instance_id = $instance_id
            UNION ALL
            SELECT last_seen, last_seen, fate, {KEY}, name, NULL, NULL, NULL FROM lives
            WHERE instance_id = $instance_id AND end_latest IS NULL
        """
        return self._within(window, timeline, "time", "time", order, instance_id=instance_id)

    def _within(self, window: Window, query: str, begin: str, end: str, order: str, **parameters: object) -> Answer:
        """Those rows of `query` that overlap `window`."""
        return self.ask(
            f"""
            SELECT * FROM ({query})
            WHERE coalesce({begin}_earliest, TIMESTAMP '-infinity') <= coalesce($until, TIMESTAMP 'infinity')
                AND coalesce({end}_latest, TIMESTAMP 'infinity') >= coalesce($since, TIMESTAMP '-infinity')
            ORDER BY {order}
            """,
            since=window.since,
            until=window.until,
            **parameters,
        )

    def hours(self, by: Sequence[str], window: Window) -> Answer:
        """The running instance-hours, by the values of these fields."""
        first, last = self.extent()
        parameters = {f"tag{number}": name[4:] for number, name in enumerate(by) if name.startswith("tag:")}
        fields = [_field(name, number) for number, name in enumerate(by)]
        names = [f"by_{number}" for number in range(len(by))]
        query = HOURS.format(
            values=", ".join(f"{value} AS {name}" for (value, _), name in zip(fields, names)),
            tells=" AND ".join(tells for _, tells in fields),
            names=", ".join(names),
            columns=", ".join(f"{name} AS {_quoted(column)}" for name, column in zip(names, by)),
        )
        return self.ask(query, since=window.since or first, until=window.until or last, **parameters)

    def coverage(self, window: Window, gap: timedelta) -> Answer:
        """The stretches of time that were covered, and those that were not; since then alone is until now."""
        until = window.until or (self.time("now") if window.since else None)
        return self.ask(COVERAGE, since=window.since, until=until, gap=gap, visible=VISIBLE)

    def archive(self, path: Path) -> None:
        """Write all lines to a Parquet file, which appears only once it is whole. Raises FileError."""
        import duckdb

        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self._connection.execute(f"COPY ({ARCHIVED} ORDER BY line) TO {_literal(str(partial))} {ARCHIVE_FORMAT}")
            read_back = f"({READ_ARCHIVE})"
            checksum = "SELECT count(*), sum(len(times)), bit_xor(hash(line, list_sort(times))) FROM"
            written = self.one(f"{checksum} {read_back}", archives=[glob.escape(str(partial))])
            if written != self.one(f"{checksum} ({ARCHIVED})"):
                raise FileError(f"{path}: what was written is not what was read")
            partial.replace(path)
        except duckdb.Error as error:
            raise FileError(f"{path} cannot be written: {_first_line(error)}") from error
        except OSError as error:
            raise FileError(f"{path} cannot be written: {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)

    def sql(self, query: str) -> Answer:
        """One SELECT on the views, which can reach nothing else. Raises UsageError."""
        import duckdb

        self._connection.execute("SET enable_external_access = false; SET python_enable_replacements = false")
        self._connection.execute("SET lock_configuration = true")
        try:
            statements = self._connection.extract_statements(query)
            if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
                raise UsageError("sql: one SELECT, please")
            columns = self._connection.execute(query).description
            if len({name for name, *_ in columns}) < len(columns):
                raise UsageError("sql: two columns have the same name; give one another, with AS")
            if zoned := [name for name, kind, *_ in columns if "TIME ZONE" in str(kind)]:
                raise UsageError(f"sql: all times here are UTC, and without a zone; cast {zoned[0]} with ::TIMESTAMP")
            return Answer([name for name, *_ in columns], self._connection.fetchall())
        except duckdb.Error as error:
            raise UsageError(f"sql: {error}") from error

    def duration(self, text: str) -> timedelta:
        """What a person means by `text`. Raises UsageError."""
        import duckdb

        try:
            (duration,) = self.one("SELECT $text::INTERVAL", text=text)
            if isinstance(duration, timedelta) and duration > timedelta():
                return duration
        except (duckdb.Error, OverflowError):
            pass
        raise UsageError(f"{text!r} is no duration: '65 minutes', say")

    def time(self, text: str) -> datetime:
        """What a person means by `text`, in UTC. Raises UsageError."""
        import duckdb

        days = {"today": 0, "yesterday": 1}
        try:
            if text in days:
                (time,) = self.one("SELECT date_trunc('day', now()::TIMESTAMP) - to_days($days)", days=days[text])
            elif text == "now":
                (time,) = self.one("SELECT now()::TIMESTAMP")
            elif text.endswith(" ago"):
                (time,) = self.one("SELECT now()::TIMESTAMP - $since::INTERVAL", since=text.removesuffix(" ago"))
            else:
                (time,) = self.one("SELECT $text::TIMESTAMPTZ::TIMESTAMP", text=text)
            if isinstance(time, datetime):  # and not one that Python has none for
                return time
        except (duckdb.Error, OverflowError):
            pass
        raise UsageError(f"{text!r} is no time: 2026-08-05T03:00:00Z, 2026-08-05, yesterday or '2 hours ago', say")


def _field(name: str, number: int) -> tuple[str, str]:
    """SQL for what `hours` goes by, and for whether a sighting tells it."""
    if name.startswith("tag:"):
        return f"tags[$tag{number}]", "told IS NOT NULL"
    if name == "name":
        return "tags['Name']", "told IS NOT NULL"
    field = "instance_type" if name == "instance_family" else name
    if field not in FIELDS:
        raise UsageError(f"--by {name}: a field of the record, tag:KEY or instance_family")
    tells = f"NOT list_contains(lacking, '{field}')"
    return (f"spans.{field}" if field == name else "split_part(instance_type, '.', 1)"), tells


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Answers questions from the log of the flight recorder.",
        epilog="TIME: 2026-08-05T03:00:00Z, 2026-08-05, yesterday, '2 hours ago', now; UTC unless it says otherwise. "
        "Exit codes: 0 found, 1 nothing found, 2 usage, 3 a gap (coverage), 74 a file cannot be read or written.",
    )
    parser.add_argument(
        "--log",
        action="append",
        metavar="PATH",
        help="a log, rotated, compressed or archived; a glob; a folder of logs; - for standard input; several together "
        f"(default: {LOG})",
    )
    parser.add_argument(
        "--format",
        choices=("auto", "table", "json", "csv"),
        default="auto",
        help="auto: a table on a terminal, JSON Lines elsewhere",
    )
    window = argparse.ArgumentParser(add_help=False)
    window.add_argument("--since", metavar="TIME", help="only what is as late as that")
    window.add_argument("--until", metavar="TIME", help="only what is as early as that")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, *, windowed: bool = True) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=summary, description=summary, parents=[window] if windowed else [])

    at = command("at", "the fleet as it was", windowed=False)
    at.add_argument("time", nargs="?", metavar="TIME", help="(default: the end of the last poll)")
    find = command("find", "who had this address, name, id or tag, and from when to when")
    find.add_argument("value", metavar="VALUE")
    find.add_argument("--at", metavar="TIME", help="only who had it then")
    timeline = command("timeline", "everything that changed on one instance")
    timeline.add_argument("instance_id", metavar="INSTANCE_ID")
    command("changes", "launched, started, stopped, modified, terminated, vanished")
    hours = command("hours", "running instance-hours")
    hours.add_argument(
        "--by", action="append", metavar="FIELD", help="any field, tag:KEY, instance_family (default: instance_type)"
    )
    coverage = command("coverage", "the polls, and every gap in which an instance could have come and gone unseen")
    coverage.add_argument(
        "--gap", metavar="DURATION", help="what is longer between two polls is one (default: 65 minutes)"
    )
    report = command("report", "one self-contained page")
    report.add_argument("file", metavar="FILE.html", type=Path)
    report.add_argument("--tag", default="Name", metavar="KEY", help="the tag to show hours by (default: Name)")
    archive = command("archive", "the log as Parquet, which every command reads as well", windowed=False)
    archive.add_argument("file", metavar="FILE.parquet", type=Path)
    sql = command("sql", "one SELECT on polls, regions, instances, lives and changes", windowed=False)
    sql.add_argument("query", metavar="QUERY")
    asked = parser.parse_args(argv)
    try:
        for value in vars(asked).values():
            for each in value if isinstance(value, list) else [value]:
                str(each).encode()
    except UnicodeEncodeError:
        parser.error("what is asked is not in UTF-8")
    return asked


def below(folder: str) -> list[str]:
    """All that is named like a log or an archive, at any depth."""
    named = re.compile(r"[^.].*\.((jsonl|log)([.-]\w+)*|parquet)")
    return sorted(os.path.join(at, name) for at, _, names in os.walk(folder) for name in names if named.fullmatch(name))


def files(patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    """The logs and the archives that these stand for. Raises UsageError."""
    found: dict[str, None] = {}
    for pattern in patterns:
        path = os.path.expanduser(pattern)
        if pattern == "-":
            paths = ["/dev/stdin"]
        elif os.path.exists(path):
            paths = [path]
        else:
            paths = sorted(glob.glob(path, recursive=True))
        logs = [log for each in paths for log in (below(each) if os.path.isdir(each) else [each])]
        if not logs:
            raise UsageError(f"{path}: {'no log is in this folder' if paths else 'no such file'}")
        found.update(dict.fromkeys(logs))
    archives = [path for path in found if path.endswith(".parquet")]
    return [path for path in found if path not in archives], archives


def answer(history: History, asked: argparse.Namespace) -> Answer | None:
    """What is asked for, or None if it is in a file."""
    since, until = (
        history.time(text) if (text := getattr(asked, end, None)) is not None else None for end in ("since", "until")
    )
    if getattr(asked, "at", None) is not None:
        since = until = history.time(asked.at)
    window = Window(since, until)
    if asked.command == "at":
        return history.at(history.time(asked.time) if asked.time is not None else None)
    if asked.command == "find":
        return history.find(asked.value, window)
    if asked.command == "timeline":
        return history.changes(window, asked.instance_id)
    if asked.command == "changes":
        return history.changes(Window(since or history.extent()[0], until))
    if asked.command == "hours":
        return history.hours(list(dict.fromkeys(asked.by or ["instance_type"])), window)
    if asked.command == "coverage":
        return history.coverage(window, history.duration(asked.gap) if asked.gap is not None else GAP)
    if asked.command == "sql":
        return history.sql(asked.query)
    if asked.command == "archive":
        if asked.file.suffix != ".parquet":
            raise UsageError(f"{asked.file}: an archive's name ends in .parquet")
        history.archive(asked.file)
    else:
        # A module of its own, and the only one that needs the library that plots.
        import report

        page = report.page(history, window, asked.tag)
        try:
            asked.file.write_text(page, encoding="utf-8")
        except OSError as error:
            raise FileError(f"{asked.file} cannot be written: {error.strerror}") from error
    return None


def plain(value: object) -> Any:
    """A value as JSON has it."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds" if value.microsecond else "seconds") + "Z"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return str(value)


def as_json(answer: Answer) -> Iterator[str]:
    for row in answer.rows:
        yield json.dumps({column: plain(value) for column, value in zip(answer.columns, row)}) + "\n"


def as_csv(answer: Answer) -> Iterator[str]:
    paper = io.StringIO()
    writer = csv.writer(paper, lineterminator="\n")
    for row in [answer.columns, *answer.rows]:
        cells = [plain(value) for value in row]
        writer.writerow([json.dumps(cell) if isinstance(cell, (dict, list)) else cell for cell in cells])
        yield paper.getvalue()
        paper.seek(0)
        paper.truncate()


def printable(text: str) -> str:
    """`text` without what drives a terminal: control characters, line ends and bidi controls become escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def cell(value: object) -> str:
    """A value as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return printable(value if isinstance(value, str) else json.dumps(plain(value)))


def when(earliest: datetime | None, latest: datetime | None) -> str:
    """One time for an end that is exact, two for one that is not."""
    if earliest == latest:
        return cell(latest)
    if earliest is None or latest is None:
        return f"by {cell(latest)}" if latest else f"after {cell(earliest)}"
    return (
        f"{cell(earliest)} to {latest:%H:%M:%S}"
        if earliest.date() == latest.date()
        else f"{cell(earliest)} to {cell(latest)}"
    )


def for_people(answer: Answer) -> tuple[list[str], list[list[str]]]:
    """Columns and cells: both times of an end in one, and without the columns that say nothing."""
    columns: list[str] = []
    cells: list[list[str]] = [[] for _ in answer.rows]
    for position, column in enumerate(answer.columns):
        if column.endswith("_earliest"):
            continue
        values = [
            when(row[position - 1], row[position]) if column.endswith("_latest") else cell(row[position])
            for row in answer.rows
        ]
        if set(values) <= {"-"}:
            continue
        columns.append(column.removesuffix("_latest"))
        for line, value in zip(cells, values):
            line.append(value)
    return columns, cells


DISPENSABLE: Final = (
    "first_seen",
    "account",
    "launch_time",
    "availability_zone",
    "public_ip_address",
    "last_seen",
    "region",
    "private_ip_address",
    "instance_type",
)
"""What a narrow window does without first."""
FLEXIBLE: Final = ("name", "value", "before", "after", "field", "reason")
FLEXIBLE_WIDTH: Final = 12


def as_table(answer: Answer) -> Iterator[str]:
    """Lines that fit the window, where there is one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns, rows = for_people(answer)
    texts = [[Text(value) for value in row] for row in rows]
    widths = {
        column: max([len(column), *(row[position].cell_len for row in texts)])
        for position, column in enumerate(columns)
    }
    window = shutil.get_terminal_size().columns if sys.stdout.isatty() else sum(widths.values()) + 2 * len(widths)

    def least() -> int:
        return sum(
            min(width, FLEXIBLE_WIDTH) if column in FLEXIBLE else width for column, width in widths.items()
        ) + 2 * len(widths)

    for column in DISPENSABLE:
        if least() > window:
            widths.pop(column, None)
    for column in sorted(widths, key=lambda column: -widths[column]):
        if column in FLEXIBLE:
            excess = sum(widths.values()) + 2 * len(widths) - window
            widths[column] = max(min(FLEXIBLE_WIDTH, widths[column]), widths[column] - max(0, excess))

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column, width in widths.items():
        number = (
            all(
                isinstance(row[answer.columns.index(column)], (int, float))
                for row in answer.rows
                if column in answer.columns
            )
            and column in answer.columns
        )
        grid.add_column(column, no_wrap=True, overflow="ellipsis", width=width, justify="right" if number else "left")
    for row in texts:
        grid.add_row(*(row[columns.index(column)] for column in widths))
    paper = io.StringIO()
    # With a width alone, rich takes 80 columns for a terminal that it holds to be dumb.
    console = Console(file=paper, width=window, height=25, force_terminal=sys.stdout.isatty())
    if rows:
        console.print(grid)
    for line in paper.getvalue().splitlines():
        yield f"{line.rstrip()}\n"


def main(argv: Sequence[str] | None = None) -> int:
    asked = arguments(argv)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as every filter: `history.py changes | head` ends there
    try:
        with History(*files(asked.log or [LOG])) as history:
            if oddities := history.oddities():
                print(f"history.py: {'; '.join(oddities)}", file=sys.stderr)
            found = answer(history, asked)
        return EXIT_FOUND if found is None else shown(found, asked)
    except ImportError as error:
        print(f"history.py: {error.name} is missing: pip install -r requirements-history.txt", file=sys.stderr)
        return EXIT_IO
    except (UsageError, FileError) as error:
        print(f"history.py: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_IO
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception:  # noqa: BLE001  # of any kind: a crash must not look like an answer that found nothing
        traceback.print_exc()
        return EXIT_BUG


def shown(found: Answer, asked: argparse.Namespace) -> int:
    """Print it, and say how the program ends."""
    kind = asked.format if asked.format != "auto" else "table" if sys.stdout.isatty() else "json"
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a TextIOWrapper, as Python starts
    try:
        sys.stdout.writelines({"json": as_json, "csv": as_csv, "table": as_table}[kind](found))
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still in the buffer
        raise FileError(f"the output cannot be written: {error.strerror}") from error
    if asked.command == "coverage" and "gap" in [row[2] for row in found.rows]:
        return EXIT_GAP
    return EXIT_FOUND if found.rows else EXIT_NOTHING


if __name__ == "__main__":
    raise SystemExit(main())
