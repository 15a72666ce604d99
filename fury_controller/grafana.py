"""Where a run is to be seen in Grafana."""

from __future__ import annotations

import datetime
import urllib.parse
from collections.abc import Mapping
from typing import Any, Optional

FLEET_UID = "fury-fleet"


def link(url: str, summary: Mapping[str, Any]) -> Optional[str]:
    """The Fleet dashboard at a Grafana's address for exactly the time window of a run; None where it never started.

    summary: the object of summary.json. The window is from the common start to the last agent's end, ramp included.
    """
    if summary["started_at"] is None:
        return None
    start = datetime.datetime.fromisoformat(summary["started_at"])
    ramp = summary["parameters"].get("ramp_seconds") or 0
    longest = max(ramp) if isinstance(ramp, list) else ramp
    end = start + datetime.timedelta(seconds=longest + summary["seconds"])
    window = {"from": _milliseconds(start), "to": _milliseconds(end), "var-run": summary["run_id"]}
    return f"{url.rstrip('/')}/d/{FLEET_UID}?{urllib.parse.urlencode(window)}"


def is_address(text: object) -> bool:
    """Whether this is the address of a Grafana: http or https, a host, no query and no credentials."""
    if not isinstance(text, str) or not text.isascii() or any(letter.isspace() for letter in text):
        return False
    try:
        parts = urllib.parse.urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain and port != 0


def _milliseconds(instant: datetime.datetime) -> int:
    return round(instant.timestamp() * 1000)
