"""What a collector that is cut off costs the writer: write rate with the collector alive, stopped and killed.

    python -m bench.collector_cut [--rounds 8] [--seconds 20] [--chunk-mb 5] [--directory /var/tmp]

Agent and collector run on loopback; the journal lies beside the directory under test, as on a host with one disk. Each
round runs once with the collector alive, once with it SIGSTOPped and once killed right after the start, in turns of
changing order, so that a disk that drifts does not favour one of them. The figure is the median of the rounds'
quotients cut / alive; every round's rates are in bench/out/collector_cut.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.table import report

ROOT = Path(__file__).resolve().parents[1]
CUTS = ("alive", "stopped", "killed")
AFTER_S = 1.0
DRAIN_S = 2


def one_run(cut: str, *, seconds: int, chunk_mb: int, directory: Path) -> float:
    """Bytes per second that one agent wrote, its collector `cut` a second after the start."""
    with tempfile.TemporaryDirectory(prefix="fury-cut-", dir=directory) as name:
        home = Path(name)
        (home / "data").mkdir()
        (home / "state").mkdir()
        agent = {
            "name": "cut",
            "host": "bench",
            "chunk_mb": chunk_mb,
            "seconds": seconds,
            "directory": str(home / "data"),
        }
        plan = {"run_id": "bench-cut", "created_at": "2026-01-01T00:00:00Z", "parameters": {}, "agents": [agent]}
        (home / "plan.json").write_text(json.dumps(plan))
        state = home / "collector.json"
        argv = [sys.executable, "-m", "fury_collector", "serve", "--plan", str(home / "plan.json"), "--port", "0"]
        argv += ["--database", str(home / "fury.db"), "--state-file", str(state)]
        collector = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not state.exists():
                if collector.poll() is not None:
                    sys.exit("the collector did not start")
                time.sleep(0.05)
            argv = [sys.executable, "-m", "fury_agent", "cut", "--chunk-mb", str(chunk_mb), "--seconds", str(seconds)]
            argv += [
                "--directory",
                str(home / "data"),
                "--state-directory",
                str(home / "state"),
                "--run-id",
                "bench-cut",
            ]
            argv += ["--collector-url", json.loads(state.read_text())["url"], "--drain-seconds", str(DRAIN_S)]
            writer = subprocess.Popen([*argv, "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
            assert writer.stdout is not None
            out = ""
            for line in writer.stdout:
                out += line
                if "is writing" in line and cut != "alive":
                    time.sleep(AFTER_S + 1.5)  # the start lies 1.5 s ahead
                    collector.send_signal(signal.SIGSTOP if cut == "stopped" else signal.SIGKILL)
            writer.wait()
            result = json.loads(out.splitlines()[-1])
            wanted = "PASS" if cut == "alive" else "INCOMPLETE"
            if result["verdict"] != wanted:
                sys.exit(f"a run with the collector {cut} ended {result['verdict']}: {result['reason']}")
            return float(result["throughput_bytes_per_second"])
        finally:
            if collector.poll() is None:
                collector.kill()
            collector.wait()


def main() -> None:
    """Run the rounds and print what a cut costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--chunk-mb", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    rates: dict[str, list[float]] = {cut: [] for cut in CUTS}
    for number in range(options.rounds):
        turn = number % len(CUTS)
        for cut in [*CUTS[turn:], *CUTS[:turn]]:
            rate = one_run(cut, seconds=options.seconds, chunk_mb=options.chunk_mb, directory=options.directory)
            rates[cut].append(rate / 1e6)
            os.sync()  # the next run does not pay for this one's journal and database
    quotients = {cut: [b / a for a, b in zip(rates["alive"], rates[cut])] for cut in CUTS[1:]}
    rows: dict[str, list[float]] = {f"MB/s, collector {cut}": rates[cut] for cut in CUTS}
    rows |= {f"{cut} / alive": quotients[cut] for cut in quotients}
    notes: dict[str, object] = {
        "seconds": options.seconds,
        "chunk_mb": options.chunk_mb,
        "directory": str(options.directory),
        "load average": os.getloadavg(),
    }
    for cut, values in quotients.items():
        change = 100 * (statistics.median(values) - 1)
        notes[f"change with the collector {cut}, median of the rounds"] = f"{change:+.2f} %"
    report("collector_cut", rows, notes=notes)


if __name__ == "__main__":
    main()
