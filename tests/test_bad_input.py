"""What a user gets wrong, through the real command: one sentence, a non-zero exit code, and nothing changed anywhere."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))

GOOD = ("-e", "chunk_mb=20", "-e", "minutes=1")
LOCAL = "ansible_connection=local ansible_python_interpreter={{ansible_playbook_python}}"


def play(directory: Path, inventory: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """run.yml over ``inventory`` with homes and results in ``directory``."""
    (directory / "inventory").write_text(inventory)
    argv = [PLAYBOOK, "-i", str(directory / "inventory"), "run.yml", *arguments]
    if not any("fury_base" in word for word in arguments):
        argv += ["-e", f"fury_base={directory}/base"]
    if not any("fury_results" in word for word in arguments):
        argv += ["-e", f"fury_results={directory}/results"]
    return subprocess.run(argv, cwd=REPO, capture_output=True, text=True, timeout=60, check=False)


def check(directory: Path, done: subprocess.CompletedProcess[str], *, says: list[str]) -> None:
    """It failed with a sentence that holds all of ``says``, no traceback, and left nothing."""
    output = done.stdout + done.stderr
    assert done.returncode != 0, output
    assert "Traceback" not in output, output
    assert "PLAY RECAP" not in output, output
    sentences = [line for line in output.splitlines() if all(word in line for word in says)]
    assert sentences, output
    assert not (directory / "base").exists()
    assert not (directory / "results").exists()
    assert not list(directory.rglob("fury-*"))


EXTRA_VARS = {
    "chunk missing": (["-e", "minutes=1"], ["chunk_mb is missing", "-e chunk_mb=20"]),
    "minutes missing": (["-e", "chunk_mb=20"], ["minutes is missing", "-e minutes=1"]),
    "zero": (["-e", "chunk_mb=0", "-e", "minutes=1"], ["chunk_mb: 0", "from 1 to 1000000"]),
    "negative": (["-e", "chunk_mb=20", "-e", "minutes=-1"], ["minutes: -1", "from 1 to 10080"]),
    "fractional": (["-e", "chunk_mb=20.5", "-e", "minutes=1"], ["chunk_mb: 20.5", "whole number"]),
    "fractional number": (["-e", '{"chunk_mb": 20.5, "minutes": 1}'], ["chunk_mb: 20.5", "whole number"]),
    "hexadecimal": (["-e", "chunk_mb=0x14", "-e", "minutes=1"], ["chunk_mb: 0x14", "whole number"]),
    "text": (["-e", "chunk_mb=big", "-e", "minutes=1"], ["chunk_mb: big", "whole number"]),
    "empty": (["-e", "chunk_mb=", "-e", "minutes=1"], ["chunk_mb:", "whole number"]),
    "huge": (["-e", "chunk_mb=99999999999999999999", "-e", "minutes=1"], ["chunk_mb: 99999999999999999999", "1000000"]),
    "list": (["-e", '{"chunk_mb": [20], "minutes": 1}'], ["chunk_mb: [20]", "whole number"]),
    "misspelt": (["-e", "chunk_mbs=20", "-e", "minutes=1"], ["chunk_mbs is not a parameter", "did you mean chunk_mb?"]),
    "root directory": ([*GOOD, "-e", "directory=/"], ["directory: /", "absolute path"]),
    "proc": ([*GOOD, "-e", "directory=/proc"], ["directory: /proc", "absolute path"]),
    "device": ([*GOOD, "-e", "directory=/dev/sda"], ["directory: /dev/sda", "absolute path"]),
    "unknown directory": ([*GOOD, "-e", "directory=/nowhere/at/all"], ["directory: /nowhere/at/all", "does not exist"]),
    "a file": ([*GOOD, "-e", "directory=/etc/../var/lib/dpkg/status"], ["directory: ", "is not a directory"]),
    "port": ([*GOOD, "-e", "fury_collector_port=70000"], ["fury_collector_port: '70000'", "from 1 to 65535"]),
    "mode": ([*GOOD, "-e", "fury_mode=docker"], ["fury_mode: 'docker'", "auto, systemd, process"]),
    "systemd elsewhere": ([*GOOD, "-e", "fury_mode=systemd"], ["systemd is not possible here"]),
    "no room": (
        ["-e", "chunk_mb=1000000", "-e", "keep=1000", "-e", "minutes=1"],
        ["bytes free", "are needed", "make room"],
    ),
    "limit that matches nothing": ([*GOOD, "--limit", "nobody"], ["host pattern", "nobody"]),
    "limit that matches in part": ([*GOOD, "--limit", "alecto,nobody"], ["host pattern", "nobody"]),
}


@pytest.mark.parametrize("case", EXTRA_VARS)
def test_bad_extra_vars_are_one_sentence(case: str, tmp_path: Path) -> None:
    """Field, value, what is allowed, what to do."""
    if case == "systemd elsewhere" and Path("/run/systemd/system").is_dir() and os.geteuid() == 0:
        pytest.skip("systemd is possible here")
    arguments, says = EXTRA_VARS[case]
    check(tmp_path, play(tmp_path, f"[fury_agents]\nalecto {LOCAL}\n", *arguments), says=says)


INVENTORIES = {
    "no group": (f"[web]\nalecto {LOCAL}\n", ["fury_agents", "name at least one agent"]),
    "empty": ("", ["fury_agents", "name at least one agent"]),
    "bad name": (f"[fury_agents]\nale..cto@x {LOCAL}\n", ["name: ", "A-Z a-z 0-9"]),
    "misspelt host variable": (
        f"[fury_agents]\nalecto {LOCAL} chunk_mbs=20\n",
        ["chunk_mbs (inventory, alecto)", "chunk_mb?"],
    ),
    "two collectors": (
        f"[fury_agents]\nalecto {LOCAL}\n[fury_collector]\na {LOCAL}\nb {LOCAL}\n",
        ["fury_collector has 2 hosts", "keep one"],
    ),
    "unreachable": (
        "[fury_agents]\nalecto ansible_host=127.0.0.1 ansible_port=1 ansible_ssh_common_args='-F /dev/null'\n",
        ["alecto is unreachable", "--limit '!alecto'"],
    ),
    "unknown address": (
        "[fury_agents]\nalecto ansible_host=no-such-host.invalid\n",
        ["fury_collector_address", "no-such-host.invalid"],
    ),
}


@pytest.mark.parametrize("case", INVENTORIES)
def test_bad_inventories_are_one_sentence(case: str, tmp_path: Path) -> None:
    """The host and what to do are named."""
    inventory, says = INVENTORIES[case]
    check(tmp_path, play(tmp_path, inventory, *GOOD), says=says)


def test_a_directory_that_fury_did_not_make_is_left_alone(tmp_path: Path) -> None:
    """Somebody's files in fury-<name> stay, byte for byte."""
    foreign = tmp_path / "data" / "fury-alecto"
    foreign.mkdir(parents=True)
    (foreign / "precious").write_text("keep me")
    done = play(tmp_path, f"[fury_agents]\nalecto {LOCAL}\n", *GOOD, "-e", f"directory={tmp_path}/data")
    assert done.returncode != 0
    assert "Fury did not make it" in done.stderr
    assert [p.name for p in foreign.iterdir()] == ["precious"]
    assert (foreign / "precious").read_text() == "keep me"


def test_a_symbolic_link_into_the_system_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    """The real path counts."""
    (tmp_path / "link").symlink_to("/etc")
    done = play(tmp_path, f"[fury_agents]\nalecto {LOCAL}\n", *GOOD, "-e", f"directory={tmp_path}/link")
    assert done.returncode != 0
    assert "really /etc" in done.stderr


def test_a_python_too_old_is_named_with_the_one_that_would_do(tmp_path: Path) -> None:
    """An interpreter that reports 3.8 is refused before anything is brought to the host."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "sitecustomize.py").write_text(
        "import sys\nsys.version_info = (3, 8, 2, 'final', 0)\nsys.version = '3.8.2'\n"
    )
    interpreter = tmp_path / "python3.8"
    interpreter.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/old exec {sys.executable} "$@"\n')
    interpreter.chmod(interpreter.stat().st_mode | stat.S_IXUSR)
    inventory = f"[fury_agents]\nalecto ansible_connection=local ansible_python_interpreter={interpreter}\n"
    check(
        tmp_path, play(tmp_path, inventory, *GOOD), says=["Python 3.8.2", "3.9 or newer", "ansible_python_interpreter"]
    )
