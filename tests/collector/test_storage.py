"""What a database costs and keeps: old runs leave it whole, and a run goes on as Parquet."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
import sqlalchemy as sa

from fury_collector import parquet, report, retention, wire
from fury_collector.db import Database, metadata
from fury_collector.errors import Precondition
from fury_collector.rows import Message, RunAge, RunState, Transition

from .conftest import CHUNK, NAMES, ROOT, RUN, event, histogram, life, plan

DAY = 86_400.0
NOW = 1.7955e9


def fury(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "fury_collector", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def record(path: Path, run_id: str, state: RunState, *, rollovers: int = 3) -> None:
    """A run with a row in every table."""
    database = Database(path)
    run_ref = database.add_run(wire.plan(plan(run_id=run_id)))
    database.start()
    for agent in database.read_run(run_id).agents:
        words = life(rollovers)
        for first in range(0, len(words), 500):
            batch = wire.batch({"v": 1, "epoch": f"{agent.id:016x}", "events": words[first : first + 500]})
            database.store(agent.id, batch).result(10)
        database.record_journal(agent.id, [("f" * 16, 1, "no")], None)
        database.record(run_ref, [Transition(agent.id, 1.0, "green", 0.0)]).result(10)
    database.record(run_ref, [Message(0, 1.0, "info", "hello"), state]).result(10)
    database.close()


def contents(path: Path) -> dict[str, list[Any]]:
    """Every row of every table."""
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.NullPool)
    with engine.connect() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(sa.select(table))] for table in metadata.sorted_tables
        }


OVER = RunState(state="finished", start_wall=NOW - 100 * DAY, end_wall=NOW - 100 * DAY + 60)


def test_an_old_run_leaves_nothing_and_the_others_are_as_they_were(tmp_path: Path) -> None:
    """Whole runs go, from every table, and the file is as small as if they had never been."""
    path, alone = tmp_path / "fury.db", tmp_path / "alone.db"
    record(path, "20260801T000000Z-old", OVER)
    before = contents(path)
    assert all(before.values())
    record(path, "20260802T000000Z-going", RunState(state="running", start_wall=4e9))
    record(path, RUN, OVER, rollovers=5_000)
    size = path.stat().st_size
    listed = fury("prune", "--keep-days", 7, "--dry-run", "--database", path)
    assert path.stat().st_size == size
    assert f"would remove {RUN} (finished)" in listed.stdout
    assert listed.stdout.splitlines()[-1] == "2 of 3 runs would be removed"
    done = fury("prune", "--keep-days", 7, "--database", path)
    assert done.returncode == 0, done.stderr
    assert "going" not in done.stdout
    freed = f"2 of 3 runs removed, {(size - path.stat().st_size) / 1e6:.1f} MB given back"
    assert done.stdout.splitlines()[-1] == freed
    assert {row[1] for row in contents(path)["runs"]} == {"20260802T000000Z-going"}
    record(alone, "20260802T000000Z-going", RunState(state="running", start_wall=4e9))
    after = contents(path)
    assert {name: len(rows) for name, rows in after.items()} == {n: len(rows) for n, rows in contents(alone).items()}
    assert path.stat().st_size <= alone.stat().st_size + 4096
    assert [file.name for file in tmp_path.glob("fury.db*")] == ["fury.db"]


def test_the_newest_runs_are_kept(tmp_path: Path) -> None:
    """`--keep-runs` counts from the newest; what remains is row for row what it was."""
    path = tmp_path / "fury.db"
    record(path, "a", OVER)
    record(path, "b", OVER)
    rows = contents(path)
    assert fury("prune", "--keep-runs", 2, "--database", path).stdout.startswith("0 of 2 runs removed")
    assert contents(path) == rows
    record(path, "c", OVER)
    kept = contents(path)
    assert fury("prune", "--keep-runs", 2, "--database", path).stdout.splitlines()[0] == "removed a (finished)"
    after = contents(path)
    assert [row[1] for row in after["runs"]] == ["b", "c"]
    assert after["rollovers"] == kept["rollovers"][9:]


def test_a_run_is_removed_whole_or_not_at_all(tmp_path: Path) -> None:
    """If the last of its rows cannot go, none has gone."""
    path = tmp_path / "fury.db"
    record(path, RUN, OVER)
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER keep BEFORE DELETE ON runs BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )
    before = contents(path)
    refused = fury("prune", "--keep-runs", 0, "--database", path)
    assert (refused.returncode, refused.stderr) == (
        3,
        f"fury_collector: {path} cannot be written (not this one): free its disk, or restore a copy\n",
    )
    assert contents(path) == before


AGE = RunAge(1, "r", "finished", ended=NOW - 10 * DAY, planned_end=NOW - 10 * DAY)


@pytest.mark.parametrize(
    ("changes", "removed"),
    [
        ({}, True),
        ({"state": "aborted"}, True),
        ({"ended": NOW - 6 * DAY}, False),
        ({"state": "running", "ended": None}, True),  # its collector died
        ({"state": "running", "ended": None, "planned_end": NOW - DAY}, False),
        ({"state": "arming", "ended": None, "planned_end": NOW + DAY}, False),
        ({"state": "running", "ended": None, "planned_end": None}, False),
        ({"ended": None, "planned_end": None}, False),
    ],
)
def test_what_is_young_or_goes_on_stays(changes: dict[str, Any], removed: bool) -> None:
    """A run without its collector's last word is over two days after its planned end."""
    run = dataclasses.replace(AGE, **changes)
    assert retention.removable([run], keep_days=7, keep_runs=None, now=NOW) == ([run] if removed else [])
    for running in (RunState("running", start_wall=NOW), RunState("arming")):
        for planned in (NOW, None):
            one = dataclasses.replace(run, state=running.state, ended=None, planned_end=planned)
            assert retention.removable([one], keep_days=None, keep_runs=0, now=NOW) == []


def test_either_limit_keeps_a_run() -> None:
    """With both only what neither keeps is removed, the oldest first."""
    runs = [dataclasses.replace(AGE, id=n, ended=NOW - age * DAY) for n, age in ((4, 1), (3, 9), (2, 20), (1, 30))]
    assert [r.id for r in retention.removable(runs, keep_days=7, keep_runs=2, now=NOW)] == [1, 2]
    assert [r.id for r in retention.removable(runs, keep_days=25, keep_runs=1, now=NOW)] == [1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "what is to be kept is missing"), (("--keep-runs", "-1"), "-1"), (("--keep-days", "x"), "x")],
)
def test_prune_says_what_it_needs(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """And removes nothing."""
    ended = fury("prune", *arguments, "--database", tmp_path / "fury.db")
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    assert said in ended.stderr


def test_nothing_is_pruned_beside_a_collector(tmp_path: Path) -> None:
    """It may be at the run that would go; a dry run only reads."""
    path = tmp_path / "fury.db"
    record(path, RUN, OVER)
    database = Database(path, exclusive=True)
    database.start()
    assert "in use by another collector" in fury("prune", "--keep-runs", 0, "--database", path).stderr
    assert fury("prune", "--keep-runs", 0, "--dry-run", "--database", path).returncode == 0
    database.close()


def test_parquet_has_what_the_summary_sums_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Typed, with run, agent and host in every row, over several row groups, the same values as the CSV files."""
    database = Database(tmp_path / "fury.db")
    database.add_run(wire.plan(plan()))
    database.start()
    for agent in database.read_run(RUN).agents:
        words = life(30)
        words[1]["ramp_bytes"] = CHUNK
        words[-1].update(written_bytes=29 * CHUNK, rollovers=29, ramp_bytes=CHUNK)
        database.store(agent.id, wire.batch({"v": 1, "epoch": f"{agent.id:016x}", "events": words})).result(10)
    database.close()
    out = tmp_path / "out"
    done = fury("export", RUN, "--output", out, "--parquet", "--database", tmp_path / "fury.db")
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    rows = pyarrow.parquet.read_table(out / "rollovers.parquet").to_pylist()
    assert len(rows) == 90
    for agent in summary["agents"]:
        mine = [row for row in rows if row["agent"] == agent["name"]]
        assert sum(row["bytes"] - row["ramp_bytes"] for row in mine) == agent["written_bytes"]
        assert sum(row["ramp_bytes"] < row["bytes"] for row in mine) == agent["rollovers"]
        assert {(row["run_id"], row["host"]) for row in mine} == {(RUN, "host1")}
    samples = pyarrow.parquet.read_table(out / "samples.parquet").to_pylist()
    assert [row["agent"] for row in samples] == list(NAMES)
    assert [row["writes"] for row in samples] == [2, 2, 2]
    for name, columns in (("rollovers", report.ROLLOVER_COLUMNS), ("samples", report.SAMPLE_COLUMNS)):
        schema = pyarrow.parquet.read_schema(out / f"{name}.parquet")
        assert schema.names == ["run_id", *columns]
        lines = (out / f"{name}.csv").read_text().splitlines()
        found = pyarrow.parquet.read_table(out / f"{name}.parquet").to_pylist()
        assert [",".join("" if row[c] is None else str(row[c]) for c in columns) for row in found] == lines[1:]
    monkeypatch.setattr(parquet, "ROW_GROUP", 40)
    reader = Database(tmp_path / "fury.db", read_only=True)
    run = reader.read_run(RUN)
    parquet.write(run.run_id, reader.rollovers(run.id), reader.samples(run.id), out)
    reader.close()
    grouped = pyarrow.parquet.ParquetFile(out / "rollovers.parquet")
    assert [grouped.metadata.row_group(n).num_rows for n in range(grouped.num_row_groups)] == [40, 40, 10]
    assert grouped.read().to_pylist() == rows


def test_parquet_of_a_run_without_anything_is_readable(tmp_path: Path) -> None:
    """No row, all columns; nulls where nothing was measured."""
    parquet.write(RUN, [], [], tmp_path)
    assert pyarrow.parquet.read_table(tmp_path / "rollovers.parquet").num_rows == 0
    base = {"agent": "a", "host": "h", "epoch": "e", "seq": 0, "t_mono_ns": 2**63 - 1, "t_wall": 1e18}
    sample = {**base, **{k: v for k, v in event(0, "sample").items() if k not in base}, "host_cpu_ratio": None}
    parquet.write(RUN, [], [{**sample, "write_histogram": histogram()}], tmp_path)
    (row,) = pyarrow.parquet.read_table(tmp_path / "samples.parquet").to_pylist()
    assert (row["host_cpu_ratio"], row["write_p99_s"], row["writes"], row["t_mono_ns"]) == (None, None, 0, 2**63 - 1)


def test_without_pyarrow_one_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Precondition, match=r"need pyarrow: .* -r requirements/parquet\.txt"):
        parquet.available()
