"""How every benchmark tells its figures: median, spread and count on the terminal, the single values as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

OUTPUT = Path(__file__).parent / "out"


def report(name: str, rows: Mapping[str, Sequence[float]], *, notes: Mapping[str, object] | None = None) -> None:
    """Print each row's median, least, greatest and count, and write all values to ``bench/out/<name>.json``."""
    width = max(len(label) for label in rows)
    print(f"{name}: {os.cpu_count()} CPUs, {platform.platform()}")
    print(f"{'':{width}}  {'median':>12} {'min':>12} {'max':>12}  n")
    for label, values in rows.items():
        figures = (statistics.median(values), min(values), max(values))
        print(f"{label:{width}}  " + " ".join(f"{value:12.4g}" for value in figures) + f"  {len(values)}")
    for label, value in (notes or {}).items():
        print(f"{label}: {value}")
    OUTPUT.mkdir(exist_ok=True)
    document = {
        "name": name,
        "platform": platform.platform(),
        "rows": {k: list(v) for k, v in rows.items()},
        "notes": notes or {},
    }
    (OUTPUT / f"{name}.json").write_text(json.dumps(document, indent=1, default=str) + "\n")
