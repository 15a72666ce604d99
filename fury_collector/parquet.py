"""A run's rollovers and samples as Parquet, with the columns of the CSV files and its run id, to join a warehouse.

pyarrow is no part of Fury: whoever wants these files installs requirements/parquet.txt.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from fury_collector import report
from fury_collector.errors import Precondition

ROW_GROUP = 65_536  # rows that are held, and that a reader can skip

_TEXT = {"run_id", "agent", "host", "epoch"}
_WHOLE = {"seq", "t_mono_ns", "chunk", "bytes", "ramp_bytes", "written_bytes", "read_bytes", "disk_free_bytes"} | {
    *("agent_rss_bytes", "host_memory_used_bytes", "host_memory_total_bytes", "writes", "fsyncs", "reads")
}  # all others are double


def available() -> ModuleType:
    """pyarrow's writer of such files, or Precondition saying how to install it."""
    try:
        from pyarrow import parquet  # type: ignore[import-untyped]
    except ImportError:
        raise Precondition(
            "Parquet files need pyarrow: python -m pip install --require-hashes -r requirements/parquet.txt"
        ) from None
    return cast(ModuleType, parquet)


def write(run_id: str, rollovers: Iterable[report.Row], samples: Iterable[report.Row], directory: Path) -> None:
    """Write rollovers.parquet and samples.parquet into an existing directory; memory does not grow with their rows."""
    _write(directory / "rollovers.parquet", run_id, rollovers, report.ROLLOVER_COLUMNS)
    _write(directory / "samples.parquet", run_id, map(report.sample_figures, samples), report.SAMPLE_COLUMNS)


def _write(path: Path, run_id: str, rows: Iterable[report.Row], columns: tuple[str, ...]) -> None:
    parquet = available()
    import pyarrow

    names = ("run_id", *columns)
    # Text is one of few values for many rows: a dictionary with indices.
    kinds = {name: pyarrow.dictionary(pyarrow.int32(), pyarrow.string()) for name in _TEXT}
    kinds |= dict.fromkeys(_WHOLE, pyarrow.int64())
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in names])
    held: dict[str, list[Any]] = {name: [] for name in names}
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:

        def flush() -> None:
            arrays = [pyarrow.array(held[field.name], field.type) for field in schema]
            writer.write_batch(pyarrow.record_batch(arrays, schema=schema))
            for values in held.values():
                values.clear()

        for row in rows:
            held["run_id"].append(run_id)
            for name in columns:
                held[name].append(row[name])
            if len(held["run_id"]) >= ROW_GROUP:
                flush()
        if held["run_id"]:
            flush()
