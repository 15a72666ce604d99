"""Runs on three hosts until the time is over, with random faults in each; nothing may be lost, doubled or left behind.

    python -m tests.faults.soak --minutes 30 --seed 4711

The first line is the seed: the same one gives the same faults in the same order. The last line is the sum of it all; the
exit code is 1 if a run did not pass, the oracle found something, or anything was left on a host.
"""

from __future__ import annotations

import argparse
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.stress import Stress, agent_pid, judge, left
from tests.hosts.lab import Fleet, Host, LabError

SECONDS = 24
"""A collector's home on the controller is named after its port, and all fleets share this machine's files."""
_EARLIEST_S = 1.0
_LATEST_HEAL_S = SECONDS - 2.0
_LATEST_KILL_S = SECONDS - 8.0
_RUN_S = 45.0


@dataclass(frozen=True)
class Kind:
    """A fault: how long it lasts (0: for ever), and what makes it and mends it; on a host, or on the collector."""

    longest_s: float
    strike: Callable[[Stress, str], None]
    mend: Callable[[Stress, str], None] | None = None
    on_host: bool = True


@dataclass(frozen=True)
class Fault:
    """One fault of a run, in seconds after the start of the stress."""

    kind: str
    host: str
    at_s: float
    lasts_s: float

    def __str__(self) -> str:
        where = f" on {self.host}" if self.host else ""
        return f"{self.kind}{where} at {self.at_s:.1f} s" + (f" for {self.lasts_s:.1f} s" if self.lasts_s else "")


def _neighbour(stress: Stress, name: str) -> None:
    host = stress.fleet.host(name)
    where = [stress.fleet.address, "dev", "eth0"]
    host.net(["ip", "neigh", "replace", where[0], "lladdr", "02:00:00:00:00:99", *where[1:], "nud", "permanent"])


def _neighbour_again(stress: Stress, name: str) -> None:
    stress.fleet.host(name).net(["ip", "neigh", "del", stress.fleet.address, "dev", "eth0"])


def _route(verb: str) -> Callable[[Stress, str], None]:
    def change(stress: Stress, name: str) -> None:
        stress.fleet.host(name).net(["ip", "route", verb, "blackhole", f"{stress.fleet.address}/32"])

    return change


def _signal(number: int) -> Callable[[Stress, str], None]:
    def send(stress: Stress, name: str) -> None:
        host = stress.fleet.host(name)
        host.enter(["kill", f"-{number}", str(_pid(host))])

    return send


def _pid(host: Host) -> int:
    """The agent's process, waited for where its supervisor is just starting it again."""
    deadline = time.monotonic() + 10
    while (pid := agent_pid(host)) == 0:
        if time.monotonic() > deadline:
            raise LabError(f"{host.name} has no agent to send a signal to")
        time.sleep(0.1)
    return pid


def _collector(do: Callable[[psutil.Process], None]) -> Callable[[Stress, str], None]:
    return lambda stress, _: do(stress.collector())


KINDS = {
    "link down": Kind(
        15, lambda run, name: run.fleet.host(name).link_down(), lambda run, name: run.fleet.host(name).link_up()
    ),
    "half-open": Kind(15, _neighbour, _neighbour_again),
    "blackhole": Kind(15, _route("add"), _route("del")),
    "kill agent": Kind(0, _signal(9)),
    "stop agent": Kind(12, _signal(19), _signal(18)),
    "stop collector": Kind(12, _collector(psutil.Process.suspend), _collector(psutil.Process.resume), on_host=False),
    "kill collector": Kind(0, _collector(psutil.Process.kill), on_host=False),
}


def draw(chance: random.Random, hosts: Sequence[str]) -> list[Fault]:
    """Two to four faults, none of them twice on the same host, each over before the stress is."""
    places = [(kind, host) for kind, it in KINDS.items() for host in (hosts if it.on_host else ("",))]
    chance.shuffle(places)
    chosen: dict[str, list[str]] = {}
    faults: list[Fault] = []
    wanted = chance.randint(2, 4)
    for kind, host in places:
        if len(faults) == wanted:
            break
        # A dead process can't be stopped, and one that is stopped is not the one that was.
        if kind in ("kill agent", "stop agent") and {"kill agent", "stop agent"} & set(chosen.get(host, [])):
            continue
        if kind in ("kill collector", "stop collector") and chosen.get(""):
            continue
        chosen.setdefault(host, []).append(kind)
        at_s = chance.uniform(_EARLIEST_S, _LATEST_KILL_S)
        longest_s = KINDS[kind].longest_s
        lasts_s = min(chance.uniform(2, longest_s), _LATEST_HEAL_S - at_s) if longest_s else 0.0
        faults.append(Fault(kind, host, at_s, lasts_s))
    return sorted(faults, key=lambda fault: fault.at_s)


def inflict(stress: Stress, faults: Sequence[Fault]) -> None:
    """Make and mend the faults at their times; whatever is made is mended, also when one of them fails."""
    began = time.monotonic()
    steps: list[tuple[float, Fault, Callable[[Stress, str], None]]] = []
    for fault in faults:
        kind = KINDS[fault.kind]
        steps.append((fault.at_s, fault, kind.strike))
        if kind.mend is not None:
            steps.append((fault.at_s + fault.lasts_s, fault, kind.mend))
    failed: Exception | None = None
    struck: set[Fault] = set()
    for at_s, fault, do in sorted(steps, key=lambda step: step[0]):
        if failed is None:
            time.sleep(max(0.0, began + at_s - time.monotonic()))
        elif fault not in struck:
            continue
        try:
            do(stress, fault.host)
            struck.add(fault)
        except Exception as error:  # noqa: BLE001 - the rest has to be mended before this is told
            failed = failed or error
    if failed is not None:
        raise failed


@contextmanager
def _working(directory: Path | None) -> Iterator[Path]:
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        yield directory
        return
    made = Path(tempfile.mkdtemp(prefix="fury-soak-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def one_run(stress: Stress, faults: Sequence[Fault], sums: Counter[str]) -> list[str]:
    """Everything that is wrong with one run and with the hosts after it; adds to the sums."""
    wrong: list[str] = []
    try:
        stress.start()
        stress.await_output(r"^started: ")
        inflict(stress, faults)
        stress.finish()
        counts = judge(stress)
        sums.update({name: counts.get(name, 0) for name in ("issued", "stored", "lost", "doubled")})
        for agent in stress.summary()["agents"]:
            if agent["verdict"] != "PASS":
                wrong.append(f"{agent['name']} did not pass: {agent['verdict']}: {agent['reason']}")
    except Exception as error:  # noqa: BLE001 - the next run goes on, this one is told
        wrong.append(f"{type(error).__name__}: {error}")
    finally:
        stress.kill()
    for host in stress.fleet.hosts:
        remains = left(host)
        sums["leftovers"] += len(remains)
        if remains:
            wrong.append(f"left on {host.name}: {', '.join(remains)}")
    if wrong:
        stress.teardown()
        wrong.append("the terminal's last lines:\n" + "\n".join(stress.output.splitlines()[-15:]))
    return wrong


def soak(*, minutes: float, seed: int, directory: Path | None = None) -> int:
    """Runs until the time is over (the last one is begun only if it will end within it); the number of runs gone wrong."""
    print(f"seed {seed}", flush=True)
    chance = random.Random(seed)
    sums: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    runs = bad = 0
    deadline = time.monotonic() + minutes * 60
    with _working(directory) as base, Fleet() as fleet:
        while runs == 0 or time.monotonic() + _RUN_S < deadline:
            runs += 1
            faults = draw(chance, [host.name for host in fleet.hosts])
            kinds.update(fault.kind for fault in faults)
            print(f"run {runs}: " + "; ".join(str(fault) for fault in faults), flush=True)
            where = base / f"run-{runs}"
            where.mkdir()
            variables = {"seconds": SECONDS, "chunk_mb": 4}
            stress = Stress(fleet, where, variables)
            wrong = one_run(stress, faults, sums)
            bad += bool(wrong)
            for sentence in wrong:
                print(f"  WRONG {sentence}", flush=True)
            if not wrong:
                print(f"  {stress.verdict()}", flush=True)
    listed = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    print(
        f"soak: seed {seed}, {runs} runs, {bad} wrong; {kinds.total()} faults ({listed}); {sums['issued']} events issued, "
        f"{sums['stored']} stored, {sums['lost']} lost, {sums['doubled']} doubled; {sums['leftovers']} leftovers"
    )
    return bad


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="Runs with random faults.")
    parser.add_argument("--minutes", type=float, default=3.0, help="how long, at least one run (default: 3)")
    parser.add_argument("--seed", type=int, default=None, help="of the faults (default: a random one, printed)")
    parser.add_argument("--directory", type=Path, default=None, help="keeps the runs' results here (default: nowhere)")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    return 1 if soak(minutes=options.minutes, seed=seed, directory=options.directory) else 0


if __name__ == "__main__":
    sys.exit(main())
