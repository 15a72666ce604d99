"""Writes the committed dashboards from their source: `python -m grafana.build [--check]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from grafana.source import agent, compare, fleet
from grafana.source.panels import render

HERE = Path(__file__).resolve().parent
DASHBOARDS: dict[str, Callable[[], object]] = {
    "fleet.json": fleet.dashboard,
    "agent.json": agent.dashboard,
    "compare.json": compare.dashboard,
}


def outdated(directory: Path = HERE / "dashboards") -> list[str]:
    """Returns one sentence per file of `directory` that is not what the source makes now."""
    problems = []
    for name, build in DASHBOARDS.items():
        path = directory / name
        if not path.exists() or path.read_text(encoding="utf-8") != render(build()):
            problems.append(f"{path} is not what grafana/source makes: run `python -m grafana.build`")
    stray = sorted(path.name for path in directory.glob("*") if path.name not in DASHBOARDS)
    return problems + [f"{directory / name} has no source in grafana/build.py: delete it or add one" for name in stray]


def main(arguments: list[str] | None = None) -> int:
    """Writes every dashboard, or with --check only says which ones are not current (exit code 1)."""
    parser = argparse.ArgumentParser(prog="python -m grafana.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a committed file is not current")
    if parser.parse_args(arguments).check:
        problems = outdated()
        for problem in problems:
            print(problem, file=sys.stderr)
        return 1 if problems else 0
    for name, build in DASHBOARDS.items():
        path = HERE / "dashboards" / name
        path.write_text(render(build()), encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
