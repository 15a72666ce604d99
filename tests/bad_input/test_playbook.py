"""What a user gets wrong, through the real command: one sentence, a non-zero exit code, and nothing changed anywhere."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bad_input import check

REPO = Path(__file__).parents[2]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))

GOOD = ("-e", "chunk_mb=20", "-e", "minutes=1")
LOCAL = "ansible_connection=local ansible_python_interpreter={{ansible_playbook_python}}"
ALECTO = f"[fury_agents]\nalecto {LOCAL}\n"
OURS = "nothing was changed on any host"


def play(directory: Path, inventory: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """run.yml over ``inventory`` with homes, results and credentials in ``directory``."""
    (directory / "inventory").write_text(inventory)
    argv = [PLAYBOOK, "-i", str(directory / "inventory"), "run.yml", *arguments]
    for name in ("base", "results", "credentials"):
        if not any(f"fury_{name}" in word for word in arguments):
            argv += ["-e", f"fury_{name}={directory}/{name}"]
    return subprocess.run(
        argv, cwd=REPO, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


def refused(directory: Path, done: subprocess.CompletedProcess[str], *, says: list[str], ours: bool = True) -> None:
    """It failed with a sentence that holds all of ``says``, no traceback, and left nothing.

    ours: whether it is Fury that found it, and not Ansible before it.
    """
    output = done.stdout + done.stderr
    assert done.returncode != 0, output
    assert "Traceback" not in output, output
    assert "PLAY RECAP" not in output, output
    assert (OURS in output) == ours, output
    sentences = [line for line in output.splitlines() if all(word in line for word in says)]
    assert sentences, output
    check.one_sentence(sentences[0], says)
    assert not (directory / "base").exists()
    assert not (directory / "results").exists()
    assert not list(directory.rglob("fury-*"))


EXTRA_VARS: dict[str, tuple[list[str], list[str]]] = {
    "chunk missing": (["-e", "minutes=1"], ["chunk_mb is missing", "-e chunk_mb=20"]),
    "minutes missing": (["-e", "chunk_mb=20"], ["minutes is missing", "-e minutes=1"]),
    "fractional number": (["-e", '{"chunk_mb": 20.5, "minutes": 1}'], ["chunk_mb: 20.5", "whole number"]),
    "empty": (["-e", "chunk_mb=", "-e", "minutes=1"], ["chunk_mb:", "whole number"]),
    "unknown directory": ([*GOOD, "-e", "directory=/nowhere/at/all"], ["directory: /nowhere/at/all", "does not exist"]),
    "a file": ([*GOOD, "-e", "directory=/etc/../var/lib/dpkg/status"], ["directory: ", "is not a directory"]),
    "systemd elsewhere": ([*GOOD, "-e", "fury_mode=systemd"], ["systemd is not possible here"]),
    "no room": (
        ["-e", "chunk_mb=1000000", "-e", "keep=1000", "-e", "minutes=1"],
        ["bytes free", "are needed", "make room"],
    ),
    "objectives in a file": (
        [*GOOD, "-e", "slo=/nowhere/slo.yml"],
        ["slo: /nowhere/slo.yml cannot be read", "No such file"],
    ),
    "credentials of others": (
        [*GOOD, "-e", "fury_credentials={open}"],
        ["is open to others", "chmod go="],
    ),
}
ANSIBLES_OWN: dict[str, tuple[list[str], list[str]]] = {
    "limit that matches nothing": ([*GOOD, "--limit", "nobody"], ["host pattern", "nobody"]),
    "limit that matches in part": ([*GOOD, "--limit", "alecto,nobody"], ["host pattern", "nobody"]),
}
# Each of these is a sentence of its own of one command.
TOGETHER: dict[str, tuple[str, list[str]]] = {
    "zero": ("chunk_mb=0", ["chunk_mb: 0", "from 1 to 1000000"]),
    "negative": ("minutes=-1", ["minutes: -1", "from 1 to 10080"]),
    "hexadecimal": ("jobs=0x14", ["jobs: 0x14", "whole number"]),
    "fraction": ("keep=2.5", ["keep: 2.5", "whole number"]),
    "text": ("block_kb=big", ["block_kb: big", "whole number"]),
    "huge": ("seed=99999999999999999999", ["seed: 99999999999999999999", "4294967295"]),
    "misspelt": ("chunk_mbs=20", ["chunk_mbs is not a parameter", "did you mean chunk_mb?"]),
    "root directory": ("directory=/", ["directory: /", "absolute path"]),
    "port": ("fury_collector_port=70000", ["fury_collector_port: '70000'", "from 1 to 65535"]),
    "mode": ("fury_mode=docker", ["fury_mode: 'docker'", "auto, systemd, process"]),
    "no name": ("chunk_mb 20", ["extra-vars: 'chunk_mb 20' has no name", "-e NAME=VALUE"]),
    "objective": ('{"slo": {"speed": ">1"}}', ["slo: 'speed' is not a figure"]),
}
INVENTORIES: dict[str, tuple[str, list[str]]] = {
    "no group": (f"[web]\nalecto {LOCAL}\n", ["fury_agents", "name at least one agent"]),
    "empty": ("", ["fury_agents", "name at least one agent"]),
    "bad name": (f"[fury_agents]\nale..cto@x {LOCAL}\n", ["name: ", "A-Z a-z 0-9"]),
    "misspelt host variable": (
        f"[fury_agents]\nalecto {LOCAL} chunk_mbs=20\n",
        ["chunk_mbs (inventory, alecto)", "chunk_mb?"],
    ),
    "two collectors": (
        f"{ALECTO}[fury_collector]\na {LOCAL}\nb {LOCAL}\n",
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
ENVIRONMENT: dict[str, tuple[dict[str, str], list[str]]] = {
    "not UTF-8": ({"LC_ALL": "C"}, ["locale", "UTF-8"]),
    "an unknown locale": ({"LC_ALL": "xx_YY.bogus"}, ["locale"]),
    "callbacks elsewhere": ({"ANSIBLE_CALLBACK_PLUGINS": "/nowhere"}, ["'fury' callback"]),
    "actions elsewhere": ({"ANSIBLE_ACTION_PLUGINS": "/nowhere", "ANSIBLE_LIBRARY": "/nowhere"}, ["fury_plan"]),
}


@pytest.mark.parametrize("case", EXTRA_VARS)
def test_bad_extra_vars_are_one_sentence(case: str, tmp_path: Path) -> None:
    """Field, value, what is allowed, what to do."""
    if case == "systemd elsewhere" and Path("/run/systemd/system").is_dir() and os.geteuid() == 0:
        pytest.skip("systemd is possible here")
    (tmp_path / "open").mkdir(mode=0o755)
    words, says = EXTRA_VARS[case]
    arguments = [word.replace("{open}", str(tmp_path / "open")) for word in words]
    refused(tmp_path, play(tmp_path, ALECTO, *arguments), says=says)


@pytest.mark.parametrize("case", ANSIBLES_OWN)
def test_bad_limits_are_one_sentence(case: str, tmp_path: Path) -> None:
    """A host that is not there is no reason to go on with the others."""
    arguments, says = ANSIBLES_OWN[case]
    refused(tmp_path, play(tmp_path, ALECTO, *arguments), says=says, ours=False)


def test_many_bad_extra_vars_are_a_sentence_each(tmp_path: Path) -> None:
    """Nobody has to mend one to hear of the next."""
    done = play(tmp_path, ALECTO, *(word for given, _ in TOGETHER.values() for word in ("-e", given)))
    for _, says in TOGETHER.values():
        refused(tmp_path, done, says=says)
    assert done.stderr.count("BAD_INPUT: ") == len(TOGETHER)


@pytest.mark.parametrize("case", INVENTORIES)
def test_bad_inventories_are_one_sentence(case: str, tmp_path: Path) -> None:
    """The host and what to do are named."""
    inventory, says = INVENTORIES[case]
    refused(tmp_path, play(tmp_path, inventory, *GOOD), says=says)


@pytest.mark.parametrize("case", ENVIRONMENT)
def test_a_bad_environment_is_one_sentence(case: str, tmp_path: Path) -> None:
    """Ansible finds these, before Fury is there."""
    environment, says = ENVIRONMENT[case]
    refused(tmp_path, play(tmp_path, ALECTO, *GOOD, **environment), says=says, ours=False)


def test_a_directory_that_fury_did_not_make_is_left_alone(tmp_path: Path) -> None:
    """Somebody's files in fury-<name> stay, byte for byte."""
    foreign = tmp_path / "data" / "fury-alecto"
    foreign.mkdir(parents=True)
    (foreign / "precious").write_text("keep me")
    done = play(tmp_path, ALECTO, *GOOD, "-e", f"directory={tmp_path}/data")
    assert done.returncode != 0
    assert "Fury did not make it" in done.stderr
    assert [p.name for p in foreign.iterdir()] == ["precious"]
    assert (foreign / "precious").read_text() == "keep me"


def test_a_symbolic_link_into_the_system_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    """The real path counts."""
    (tmp_path / "link").symlink_to("/etc")
    done = play(tmp_path, ALECTO, *GOOD, "-e", f"directory={tmp_path}/link")
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
    done = play(tmp_path, inventory, *GOOD)
    refused(tmp_path, done, says=["Python 3.8.2", "3.9 or newer", "ansible_python_interpreter"])
