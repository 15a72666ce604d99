"""What a run costs beyond its duration, beside Ansible's own floor, on real systemd hosts in turns.

    python -m bench.fleet_overhead [--hosts 3] [--rounds 5] [--seconds 10]

The floor is a play with facts and three trivial tasks on the same hosts. Needs root and what tests/hosts needs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

from bench.table import report
from tests.hosts.lab import Fleet, HostSpec

REPO = Path(__file__).parents[1]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
FLOOR = """
- hosts: fury_agents
  gather_facts: true
  tasks:
    - {name: one, ansible.builtin.command: "true"}
    - {name: two, ansible.builtin.command: "true"}
    - {name: three, ansible.builtin.command: "true"}
"""
SUITES = (("deb11", "bullseye"), ("deb12", "bookworm"), ("deb13", "trixie"))


def timed(fleet: Fleet, argv: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one command on the controller."""
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.monotonic()
    done = fleet.controller_run(argv, cwd=REPO, env=dict(os.environ), timeout_s=600)
    wall = time.monotonic() - begun
    if done.returncode:
        sys.exit(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime


def main() -> None:
    """Alternate floor and run, and print both with their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10)
    options = parser.parse_args()
    rows: dict[str, list[float]] = {
        "floor, wall s": [], "run beyond its duration, wall s": [], "ratio of wall": [],
        "floor, CPU s": [], "run, CPU s": [], "ratio of CPU": [],
        "start skew as reported, ms": [], "start skew by the shared clock, ms": [],
    }  # fmt: skip
    specs = [
        HostSpec(f"{SUITES[i % 3][0]}-{i // 3}" if i >= 3 else SUITES[i][0], SUITES[i % 3][1])
        for i in range(options.hosts)
    ]
    with Fleet(specs) as fleet, tempfile.TemporaryDirectory(prefix="fury-bench-") as name:
        directory = Path(name)
        inventory = str(fleet.inventory(directory / "inventory"))
        (directory / "floor.yml").write_text(FLOOR)
        run = [PLAYBOOK, "-i", inventory, "run.yml", "-e", "chunk_mb=20", "-e", f"seconds={options.seconds}"]
        run += ["-e", f"fury_results={directory}/results", "-e", "allow_few_rollovers=true"]
        for _ in range(options.rounds):
            floor_wall, floor_cpu = timed(fleet, [PLAYBOOK, "-i", inventory, str(directory / "floor.yml")])
            run_wall, run_cpu = timed(fleet, run)
            beyond = run_wall - options.seconds
            rows["floor, wall s"].append(floor_wall)
            rows["run beyond its duration, wall s"].append(beyond)
            rows["ratio of wall"].append(beyond / floor_wall)
            rows["floor, CPU s"].append(floor_cpu)
            rows["run, CPU s"].append(run_cpu)
            rows["ratio of CPU"].append(run_cpu / floor_cpu)
            latest = directory / "results" / "latest"
            summary = json.loads((latest / "summary.json").read_text())
            rows["start skew as reported, ms"].append(summary["fleet"]["start_skew_seconds"] * 1e3)
            with sqlite3.connect(latest / "fury.db") as database:
                starts = [row[0] for row in database.execute("select t_mono_ns from events where kind = 'start'")]
            rows["start skew by the shared clock, ms"].append((max(starts) - min(starts)) / 1e6)
    report("fleet_overhead", rows, notes={"hosts": options.hosts, "seconds": options.seconds})


if __name__ == "__main__":
    main()
