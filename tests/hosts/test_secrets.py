"""The secrets of real runs, searched for wherever they could have got to: none may be found.

The most talkative Ansible there is (-vvvvv) runs the fleet of real hosts and the default inventory. Meanwhile what each host was
given is read there as root; afterwards it is looked for in Ansible's output, every process' arguments and environment, the
hosts' journals and logs, and the results.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.hosts.lab import Fleet

pytestmark = pytest.mark.hosts

REPO = Path(__file__).parents[2]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))


@dataclass
class Hunt:
    """Needles by what they are, and every place where one was found."""

    needles: dict[str, bytes] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)
    searched_bytes: int = 0
    processes: int = 0

    def learn(self, place: str, files: Iterable[tuple[str, bytes]]) -> None:
        """Take in what lies in a directory of secrets: tokens, keys."""
        for name, content in files:
            if name == "token":
                self.needles[f"token of {place}"] = content.strip()
            if b"PRIVATE KEY" in content:
                body = content.partition(b"PRIVATE KEY-----\n")[2]
                self.needles[f"key of {place}"] = body.splitlines()[1]

    def learn_password(self, credentials: Path) -> None:
        """The read password, and how HTTP basic writes it."""
        password = (credentials / "read-password").read_bytes().strip()
        self.needles["password"] = password
        # Three letters are four of base64: the part that does not depend on what comes before it.
        self.needles["password in HTTP basic"] = base64.b64encode(b"fury:" + password)[8:40]

    def search(self, place: str, content: bytes) -> None:
        """Look for every needle in ``content``."""
        self.searched_bytes += len(content)
        self.found += [f"{what} in {place}" for what, needle in self.needles.items() if needle in content]

    def search_processes(self) -> None:
        """The arguments and the environment of every process of this machine, those in containers included."""
        for pid in (entry for entry in os.listdir("/proc") if entry.isdigit()):
            for what in ("cmdline", "environ"):
                try:
                    self.search(f"/proc/{pid}/{what}", Path(f"/proc/{pid}/{what}").read_bytes())
                except OSError:
                    continue
            self.processes += 1


def hunted(argv: list[str], directory: Path, hunt: Hunt, homes: Iterable[Path]) -> str:
    """Run a playbook, learn the secrets below ``homes`` while it runs, search processes all the time; its output."""
    output = directory / "output"
    with output.open("w") as out:
        process = subprocess.Popen(argv, cwd=REPO, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 180
        while process.poll() is None and time.monotonic() < deadline:
            for home in homes:
                for secrets in home.glob("*/secrets"):
                    try:
                        files = [(file.name, file.read_bytes()) for file in secrets.iterdir() if file.name[0] != "."]
                        hunt.learn(str(secrets.parent), files)
                    except (OSError, IndexError):  # being made, or just going away
                        continue
            hunt.search_processes()
            time.sleep(0.1)
        assert process.wait(10) == 0, output.read_text()[-3000:]
    finally:
        if process.poll() is None:
            process.kill()
    hunt.search("the output of ansible-playbook -vvvvv", output.read_bytes())
    for path in (directory / "results").rglob("*"):
        if path.is_file() and not path.is_symlink():
            hunt.search(str(path), path.read_bytes())
    return output.read_text()


def options(directory: Path) -> list[str]:
    return ["-e", json.dumps({"chunk_mb": 5, "seconds": 4, "fury_results": f"{directory}/results",
            "fury_credentials": f"{directory}/credentials", "fury_collector_port": 19476}), "-vvvvv"]  # fmt: skip


def test_a_run_over_ssh_shows_no_secret_anywhere(lab: None, tmp_path: Path) -> None:
    """Three hosts with systemd: 3 tokens, 3 keys, the collector's key and the password; 0 found."""
    with Fleet() as fleet:
        hunt = Hunt()
        inventory = fleet.inventory(tmp_path / "inventory")
        homes = [host.root / "var/lib/fury" for host in fleet.hosts] + [Path("/var/lib/fury")]
        argv = fleet.controller_argv([PLAYBOOK, "-i", str(inventory), "run.yml", *options(tmp_path)])
        output = hunted(argv, tmp_path, hunt, homes)
        hunt.learn_password(tmp_path / "credentials")
        hunt.search("the output of ansible-playbook -vvvvv", output.encode())
        for host in fleet.hosts:
            hunt.search(
                f"the journal of {host.name}",
                host.run(["journalctl", "--no-pager", "--all", "-o", "json"]).stdout.encode(),
            )
            hunt.search(
                f"the logs of {host.name}",
                host.run(["sh", "-c", "cat /var/log/*log 2>/dev/null; true"]).stdout.encode(),
            )
        conclude(hunt, agents=3)


def test_a_run_on_this_machine_shows_no_secret_anywhere(tmp_path: Path) -> None:
    """The default inventory, as processes."""
    hunt = Hunt()
    base = tmp_path / "base"
    argv = [PLAYBOOK, "run.yml", *options(tmp_path), "-e", f"fury_base={base}", "-e", f"directory={tmp_path}"]
    argv += ["-e", "free_floor_mb=0"]
    output = hunted(argv, tmp_path, hunt, [base])
    hunt.learn_password(tmp_path / "credentials")
    hunt.search("the output of ansible-playbook -vvvvv", output.encode())
    conclude(hunt, agents=3)


def conclude(hunt: Hunt, *, agents: int) -> None:
    kinds = [what.split(" of ")[0] for what in hunt.needles]
    assert (kinds.count("token"), kinds.count("key")) == (agents, agents + 1), hunt.needles.keys()
    hunt.search("the test's own proof that it can find one", b"x" + next(iter(hunt.needles.values())) + b"x")
    assert hunt.found == [f"{next(iter(hunt.needles))} in the test's own proof that it can find one"]
    print(
        f"secrets looked for: {len(hunt.needles)}; in {hunt.searched_bytes / 1e6:.0f} MB and {hunt.processes} processes; found: 0"
    )
