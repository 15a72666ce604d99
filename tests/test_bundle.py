"""The bundle: a controller that reaches nothing but itself sets itself up from it and runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from fury_controller import bundle, supply, tree

PORT = 19575  # in a network of its own it could be any


def alone() -> list[str]:
    """The start of a command line that runs without any route and takes every process that it started along when it ends."""
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    argv = ["unshare", *as_root, "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    try:
        tried = subprocess.run([*argv, "ip", "link"], capture_output=True, text=True, check=False)
        reason = tried.stderr.strip() if tried.returncode else ""
    except FileNotFoundError as error:
        reason = str(error)
    if reason and os.environ.get("CI"):
        pytest.fail(f"in CI the bundle must be tried without a network, but: {reason}")
    if reason:
        pytest.skip(f"this user can't make a network of its own: {reason}")
    return argv


def play(root: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run ``script`` in the unpacked ``root``: an empty home, nothing that this machine's pip is set to, no network but lo."""
    home = root.parent / "home"
    home.mkdir(exist_ok=True)
    path = f"{Path(sys.base_prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
    environment = {"PATH": path, "HOME": str(home), "LC_ALL": "C.UTF-8", "PIP_CONFIG_FILE": os.devnull}
    script = f'ip link set lo up; test -z "$(ip route)"; test -z "$(ip -6 route show default)"\n{script}'
    return subprocess.run(
        [*alone(), "bash", "-euc", script],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def unpack(archive: Path, into: Path) -> Path:
    """Unpack as a user would; return the tree."""
    into.mkdir()
    subprocess.run(["tar", "-xzf", str(archive), "-C", str(into)], check=True)
    (root,) = into.iterdir()
    return root


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of this tree; files that git does not know yet are in, as they will be after the next commit."""
    return bundle.make(tmp_path_factory.mktemp("bundle"), also_untracked=True)


def test_a_controller_without_a_route_sets_itself_up_and_runs(archive: Path, tmp_path: Path) -> None:
    """`make setup`, a run to PASS, and the archives for other hosts: all from the archive alone; nothing is left."""
    root = unpack(archive, tmp_path / "unpacked")
    (tmp_path / "chunks").mkdir()
    options = f"-e fury_collector_port={PORT} -e fury_base={tmp_path}/base -e directory={tmp_path}/chunks -e fury_mode=process"
    collectors = "tree.collector_archive('x86_64', '3.12'); tree.collector_archive('aarch64', '3.14')"
    done = play(
        root,
        f"make setup\n"
        f'.venv/bin/python -c "from fury_controller import tree; {collectors}"\n'
        f'PATH="$PWD/.venv/bin:$PATH" ansible-playbook run.yml -e chunk_mb=5 -e seconds=5 {options}\n',
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("PASS: 3 of 3 agents finished"), done.stdout
    summary = json.loads((root / "results/latest/summary.json").read_text())
    assert summary["verdict"] == "PASS"
    assert not list((tmp_path / "chunks").iterdir())
    for architecture, machine in (("x86_64", 62), ("aarch64", 183)):  # ELF's e_machine
        for program in (f"agent-{architecture}", f"collector-{architecture}-*"):
            (built,) = (root / ".build").glob(f"{program}-????????????.tar.gz")
            with tarfile.open(built) as tar:
                heads = [tar.extractfile(member) for member in tar if member.name.endswith(".so")]
                assert {int.from_bytes(head.read(20)[18:20], "little") for head in heads if head} == {machine}


def test_a_wheel_that_is_missing_is_said_in_one_sentence(archive: Path, tmp_path: Path) -> None:
    """Nothing else is asked for it: the set-up fails, and says what to do."""
    root = unpack(archive, tmp_path / "unpacked")
    (missing,) = (root / "wheels").glob("flask-*.whl")
    missing.unlink()
    done = play(root, "make setup")
    assert done.returncode != 0
    assert (
        "make setup: the wheels of this bundle could not be installed, pip says why above; docs/airgap.md"
        in done.stderr
    )
    assert re.search(r"No matching distribution found for flask==", done.stderr)
    assert "Traceback" not in done.stderr


def test_the_archive_holds_plain_files_under_one_name(archive: Path) -> None:
    """No absolute path, no link, nobody's name, one time; every file that git knows, and both architectures' wheels."""
    root = f"fury-{supply.version()}/"
    with tarfile.open(archive) as tar:
        members = {member.name.removeprefix(root): member for member in tar if member.name.startswith(root)}
        assert len(tar.getmembers()) == len(members)
    assert all(member.isreg() and ".." not in member.name.split("/") for member in members.values())
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members.values()} == {(0, 0, "", "")}
    assert len({m.mtime for m in members.values()}) == 1
    known = {name for name in supply.git("ls-files", "-z").split("\0") if (tree.REPO / name).is_file()}
    assert known - {""} <= set(members)
    assert members[".ci/run"].mode == 0o755
    for architecture in tree.ARCHITECTURES:
        assert any(re.match(rf"wheels/psutil-.*-abi3-.*{architecture}\.whl", name) for name in members)
        for python in tree.BUNDLED_PYTHONS:
            tag = "cp" + python.replace(".", "")
            assert any(re.match(rf"wheels/gevent-.*-{tag}-{tag}-.*{architecture}\.whl", name) for name in members)


def test_nothing_in_it_names_a_package_index_or_the_machine_that_made_it(archive: Path) -> None:
    """Neither the public indexes nor the one that this machine is set to; wheels are others' files and stay as they are."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    ours = [
        word
        for line in listed.splitlines()
        if re.search("index-url|find-links", line)
        for word in line.split("=", 1)[1].split()
    ]
    names = [word.strip("'\"") for word in ours] + ["pypi" + ".org", "python" + "hosted", "npm" + "js"]
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None or "/wheels/" in member.name:
                continue
            text = file.read().decode(errors="replace")
            found = [name for name in names if name in text]
            assert not found, f"{member.name} names {found}"
            if member.name.endswith(".cdx.json"):
                assert str(tree.REPO) not in text
                assert str(Path.home()) + "/" not in text


def test_the_same_commit_gives_the_same_bytes(tmp_path: Path) -> None:
    """So a bundle can be checked by whoever has the commit; its SHA-256 lies beside it."""
    once, again = (bundle.make(tmp_path / name, also_untracked=True) for name in ("once", "again"))
    assert once.with_name(f"{once.name}.sha256").read_text() == again.with_name(f"{again.name}.sha256").read_text()
    subprocess.run(["sha256sum", "--check", "--quiet", f"{again.name}.sha256"], cwd=again.parent, check=True)
