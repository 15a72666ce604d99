"""`python -m fury_collector`: serve a run, list runs, report one, export one, store what was fetched from hosts."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click
from sqlalchemy.exc import DBAPIError

from fury_collector import __version__, compare, compare_page, ingest, junit, parquet, report, retention, stores, wire
from fury_collector.db import Database
from fury_collector.errors import BadInput, CollectorError, Damaged, Precondition


def _database(command: Callable[..., None]) -> Callable[..., None]:
    """The options that name the database of a command; it gets one value of them, `database`."""

    @click.option(
        "--database",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The SQLite database of all runs.  [default: fury.db]",
    )
    @click.option(
        "--database-url",
        help="Instead of a file: a PostgreSQL database, postgresql+psycopg://user@host/database, without a password.",
    )
    @click.option(
        "--database-url-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Instead of it: a file of mode 0600 with that URL, which may have a password.",
    )
    @functools.wraps(command)
    def named(database: Path | None, database_url: str | None, database_url_file: Path | None, **options: Any) -> None:
        if sum(one is not None for one in (database, database_url, database_url_file)) > 1:
            raise BadInput("name one database: --database, --database-url or --database-url-file")
        where: stores.Where = database or Path("fury.db")
        if database_url is not None:
            where = stores.url(database_url, "database-url", public=True)
        elif database_url_file is not None:
            where = stores.read_url(database_url_file)
        command(database=where, **options)

    return named


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fury_collector", help="Show the version and stop.")
def cli() -> None:
    """Record what Fury's agents report, start them together, and say how a run went."""


@cli.command()
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The run and its agents as JSON (docs/protocol.md).",
)
@_database
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9475,
    show_default=True,
    help="The port to listen on; 0 takes any free one.",
)
@click.option(
    "--state-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to say pid, port and URL as JSON once it listens; removed at the end.",
)
@click.option(
    "--barrier-seconds",
    type=click.IntRange(1, 86400),
    default=300,
    show_default=True,
    help="How long to wait from now on for all agents to be ready before the run is aborted.",
)
@click.option(
    "--credentials-directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where what the run gave this collector lies: tls.pem and access.json.",
)
@click.option(
    "--plain-http", is_flag=True, help="Instead of it: no TLS, no credentials, only on loopback; for debugging."
)
@click.option("--stay", is_flag=True, help="Stay when the run is over, until SIGTERM or SIGINT.")
def serve(**options: Any) -> None:
    """Serve one run: wait for its agents, start them together, store what they report, and end with the run."""
    from fury_collector import server  # gevent is not needed by the other commands

    credentials = None if options["plain_http"] else options["credentials_directory"]
    if credentials is None and not options["plain_http"]:
        raise BadInput(
            "credentials-directory is missing; give the directory that the run made for this collector, "
            "or --plain-http to debug on this machine"
        )
    server.serve(
        wire.plan(_read_json(options["plan_file"], "plan")),
        options["database"],
        host=options["host"],
        port=options["port"],
        state_file=options["state_file"],
        barrier_seconds=options["barrier_seconds"],
        credentials=credentials,
        stay=options["stay"],
        tell=server.printer(),
    )


@cli.command()
@_database
def runs(database: stores.Where) -> None:
    """List all runs, newest first."""
    with _opened(database) as store:
        lines = store.list_runs()
        width = max([len("run"), *(len(line.run_id) for line in lines)])
        table = [f"{'run':<{width}}  {'created':<24}  {'state':<9}  {'agents':>6}  {'rollovers':>9}"]
        table += [
            f"{line.run_id:<{width}}  {line.created_at:<24}  {line.state:<9}  {line.agents:>6}  {line.rollovers:>9}"
            for line in lines
        ]
    _print("\n".join(table) if lines else "there is no run yet")


@cli.command(name="report")
@click.argument("run_id", metavar="RUN")
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the report as one offline page with curves.",
)
@_database
def report_(run_id: str, html_file: Path | None, database: stores.Where) -> None:
    """Print the general statistics of RUN (a run id or `latest`) as a table."""
    with _opened(database) as store:
        if html_file is None:
            result = _result(store, run_id)
        else:
            result, page = _report(store, run_id)
            try:
                html_file.write_text(page(), encoding="utf-8")
            except OSError as error:
                raise Precondition(f"cannot write {html_file}: {error.strerror}; name another file") from None
        told = report.table(result)
    _print(told)


@cli.command()
@click.argument("run_id", metavar="RUN")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The directory for summary.json, report.html and the other files; made if it is not there.",
)
@_database
@click.option(
    "--hosts",
    "hosts_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="What the controller saw of each agent's host as JSON; recorded first.",
)
@click.option(
    "--parquet", "as_parquet", is_flag=True, help="Also write rollovers.parquet and samples.parquet; needs pyarrow."
)
def export(run_id: str, output: Path, database: stores.Where, hosts_file: Path | None, as_parquet: bool) -> None:
    """Write summary.json, report.html and the CSV files of RUN (a run id or `latest`), and print its statistics."""
    if as_parquet:
        parquet.available()
    hosts = wire.hosts(_read_json(hosts_file, "hosts")) if hosts_file is not None else None
    with _opened(database, read_only=hosts is None) as store:
        run = store.read_run(run_id)
        if hosts is not None:
            store.record_hosts(run.id, hosts)
        result, page = _report(store, run.run_id)
        try:
            output.mkdir(parents=True, exist_ok=True)
            with _new(output / "rollovers.csv") as file:
                report.write_rollovers(store.rollovers(run.id), file)
            with _new(output / "samples.csv") as file:
                report.write_samples(store.samples(run.id), file)
            if as_parquet:
                parquet.write(run.run_id, store.rollovers(run.id), store.samples(run.id), output)
            with _new(output / "summary.json") as file:
                json.dump(report.summary(result), file, indent=2, ensure_ascii=False)
                file.write("\n")
            with _new(output / "junit.xml") as file:
                file.write(junit.junit(result))
            with _new(output / "report.html") as file:
                file.write(page())  # last: whatever is wrong with it, the figures are there
        except OSError as error:
            raise Precondition(f"cannot write to {output}: {error.strerror}; name another directory") from None
        told = report.table(result)
    _print(told)


@cli.command(name="compare")
@click.argument("runs", metavar="RUN_A RUN_B [RUN_C...]", nargs=-1)
@click.option(
    "--group",
    "groups",
    metavar="NAME=RUN,RUN,...",
    multiple=True,
    help="Several runs of one setting, to be compared as one under this name; may be repeated.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0.1, 99),
    default=compare.MARGIN,
    show_default=True,
    help="The smallest difference of a rate that matters, percent.",
)
@click.option(
    "--latency-margin",
    type=click.FloatRange(0.1, 99),
    default=compare.LATENCY_MARGIN,
    show_default=True,
    help="The smallest difference of a duration that matters, percent.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the comparison as one offline page with curves.",
)
@_database
def compare_(
    runs: tuple[str, ...],
    groups: tuple[str, ...],
    margin: float,
    latency_margin: float,
    as_json: bool,
    html_file: Path | None,
    database: stores.Where,
) -> None:
    """Compare runs with the first one: what is not the same in them, then each figure with its difference.

    Each is a results directory, a database with one run in it, or the id of a run in --database.
    """
    named = [("", [run]) for run in runs] + [_group(one) for one in groups]
    observed = [(name, [_observed(run, database) for run in members]) for name, members in named]
    sides = [(name or seen[0].run_id, seen) for name, seen in observed]
    comparison = compare.compare(sides, margin=margin, latency_margin=latency_margin)
    if html_file is not None:
        try:
            html_file.write_text(compare_page.page(comparison), encoding="utf-8")
        except OSError as error:
            raise Precondition(f"cannot write {html_file}: {error.strerror}; name another file") from None
    _print(
        json.dumps(compare.document(comparison), indent=2, ensure_ascii=False) if as_json else compare.table(comparison)
    )


@cli.command(name="ingest")
@click.argument("run_id", metavar="RUN")
@click.argument("journals", metavar="NAME=JOURNAL...", nargs=-1, required=True)
@_database
def ingest_(run_id: str, journals: tuple[str, ...], database: stores.Where) -> None:
    """Store what agents' journals hold that did not get through to RUN's collector (a run id or `latest`).

    Each is given as alecto=path/to/journal.db. It may be repeated: nothing is stored twice.
    """
    lines: list[str] = []
    store = Database(database, create=False, exclusive=True)
    try:
        store.start()
        problems = ingest.ingest(store, run_id, [_journal(one) for one in journals], tell=lines.append)
    finally:
        store.close()
    _print("\n".join(lines))
    if problems:
        raise Damaged("; ".join(problems))


@cli.command()
@click.option("--keep-days", type=click.IntRange(0, 36500), help="Keep runs that ended in the last so many days.")
@click.option("--keep-runs", type=click.IntRange(0), help="Keep so many of the newest runs.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@_database
def prune(keep_days: int | None, keep_runs: int | None, dry_run: bool, database: stores.Where) -> None:
    """Remove old runs whole, and give their room back to the disk; never one that is still going on.

    What --keep-days or --keep-runs keeps is kept. A run whose collector died is over two days after its planned end.
    """
    if keep_days is None and keep_runs is None:
        raise BadInput("what is to be kept is missing: name --keep-days, --keep-runs or both")
    store = Database(database, create=False, exclusive=not dry_run, read_only=dry_run)
    try:
        ages = store.ages()
        old = retention.removable(ages, keep_days=keep_days, keep_runs=keep_runs, now=time.time())
        for run in old:
            if not dry_run:
                store.forget(run.id)
            _print(f"{'would remove' if dry_run else 'removed'} {run.run_id} ({run.state})")
        freed = f", {store.give_back() / 1e6:.1f} MB given back" if not dry_run else ""
    finally:
        store.close()
    _print(f"{len(old)} of {len(ages)} runs {'would be removed' if dry_run else 'removed'}{freed}")


def main() -> None:
    """Run the command line; what the user can act on ends in one sentence and an exit code, never in a traceback."""
    try:
        cli(standalone_mode=False)
    except CollectorError as error:
        _fail(error.message, error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except click.Abort:
        sys.exit(130)
    except BrokenPipeError:  # whoever reads the output has seen enough
        _mute()
        sys.exit(1)
    except OSError as error:
        _mute()
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error), 3)
    except DBAPIError as error:
        _fail(f"the database failed: {' '.join(str(error.orig or error).split())}; restore a copy, or name another", 3)


def _fail(sentence: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        click.echo(f"fury_collector: {' '.join(sentence.split())}", err=True)  # a path may have any character
    sys.exit(code)


def _print(text: str) -> None:
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        _mute()
        raise Precondition(f"cannot write the output: {error.strerror}") from None


def _mute() -> None:
    """Let what is still in the output's buffer go nowhere: the interpreter would stumble over it again at its end."""
    with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


@contextlib.contextmanager
def _opened(database: stores.Where, *, read_only: bool = True) -> Iterator[Database]:
    """An existing database; what nothing but damage explains ends in a sentence as well."""
    store = Database(database, create=False, read_only=read_only)
    try:
        yield store
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        store.check()
        raise Precondition(
            f"{store.name} holds what no collector writes ({' '.join(str(error).split())}): restore a copy, or name another"
        ) from error
    finally:
        store.close()


def _result(store: Database, run_id: str) -> report.Result:
    run = store.read_run(run_id)
    return report.judge(run, store.samples(run.id))


def _report(store: Database, run_id: str) -> tuple[report.Result, Callable[[], str]]:
    """A run judged, and what makes the page of its report; rollovers and samples stream through, none of them is held."""
    from fury_collector import report_page  # templates are not needed by the other commands
    from fury_collector.curves import Curves

    run = store.read_run(run_id)
    curves = Curves(run)
    result = report.judge(run, curves.watching(store.samples(run.id)))

    def page() -> str:
        for agent, epoch, rollovers in store.rollover_times(run.id):
            curves.add_rollovers(agent, epoch, rollovers)
        error_count, errors = store.errors(run.id, most=report_page.SHOWN_FAULTS)
        warning_count, warnings = store.warnings(run.id, most=report_page.SHOWN_FAULTS)
        faults = report_page.Faults(errors, error_count, warnings, warning_count)
        return report_page.report(run, result, curves, faults)

    return result, page


def _observed(named: str, database: stores.Where) -> compare.Observed:
    """A run for a comparison: of a results directory, of a database with one run, or of --database by its id."""
    path = Path(named)
    if path.is_dir():
        path = path / "fury.db"
        if not path.exists():
            raise BadInput(f"{named} has no fury.db: name a directory that a run has left, results/<run_id>")
    elif not path.exists() and isinstance(database, Path) and not database.exists():
        raise BadInput(
            f"{named} is no directory and no file, and there is no {database} that could have a run of that id: "
            "name results/<run_id>, or the database with --database"
        )
    stored = path.exists()
    with _opened(path if stored else database) as store:
        run_id = "latest" if stored else named
        known = [line.run_id for line in store.list_runs()] if stored else []
        if len(known) > 1:
            run_id = Path(named).resolve().name
            if run_id not in known:
                raise BadInput(f"{path} has {len(known)} runs: name each by its id, with --database {path}")
        run = store.read_run(run_id)
        result = report.judge(run, store.samples(run.id))
        return compare.observe(run, result, store.rollovers(run.id), store.samples(run.id))


def _group(argument: str) -> tuple[str, list[str]]:
    name, separator, runs = argument.partition("=")
    members = [run for run in runs.split(",") if run]
    if not separator or not name or not members:
        raise BadInput(f"{argument} does not say which runs it is: write it as NAME=RUN,RUN,...")
    return name, members


def _read_json(path: Path, what: str) -> Any:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read the {what} file {path}: {error.strerror}") from None
    return wire.loads(raw, what=f"the {what} file {path}")


def _journal(argument: str) -> tuple[str, Path]:
    name, separator, path = argument.partition("=")
    if not separator or not name or not path:
        raise BadInput(f"{argument} does not say whose journal it is: write it as NAME=JOURNAL, alecto=journal.db")
    return name, Path(path)


def _new(path: Path) -> Any:
    return path.open("w", encoding="utf-8", newline="")


if __name__ == "__main__":
    main()
