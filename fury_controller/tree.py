"""Builds the archives that are copied to hosts: a program with the libraries it needs, for one kind of machine."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
BUILD = REPO / ".build"
WHEELS = REPO / "wheels"  # only an unpacked bundle has it (see bundle.py): then nothing comes from anywhere else
ARCHITECTURES = ("x86_64", "aarch64")
AGENT_PYTHON = "3.9"  # psutil's wheels use the stable ABI: one tree serves this and every newer version
BUNDLED_PYTHONS = ("3.11", "3.12", "3.13", "3.14")  # of controllers, and of collectors on other hosts, in a bundle


class TreeError(Exception):
    """An archive can't be built; the sentence says why and what to do."""


def agent_archive(architecture: str) -> Path:
    """The agent's archive for hosts of ``architecture``, built once and again only when something in it has changed."""
    if architecture not in ARCHITECTURES:
        raise TreeError(
            f"architecture: {architecture} is not one that the agent's libraries come for ({', '.join(ARCHITECTURES)}); "
            "take this host out of fury_agents"
        )
    libraries = _libraries("agent", architecture, AGENT_PYTHON)
    return _archive(f"agent-{architecture}", [libraries], ["fury_agent"])


def collector_archive(architecture: str, python: str) -> Path:
    """The collector's archive for a host of ``architecture`` with ``python`` (such as "3.11")."""
    return _archive(
        f"collector-{architecture}-{python}", [_libraries("collector", architecture, python)], ["fury_collector"]
    )


def collector_code_archive() -> Path:
    """The collector's archive without libraries, for this controller, whose own environment has them."""
    return _archive("collector-code", [], ["fury_collector"])


def pip(action: list[str], program: str, architecture: str, python: str, *, hint: str) -> None:
    """Let pip do ``action`` with the wheels in the lock of ``program`` for such hosts, whatever it runs on itself."""
    command = [sys.executable, "-m", "pip", *action, "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in ("manylinux2014", "manylinux_2_17", "manylinux_2_28"):
        command += ["--platform", f"{platform}_{architecture}"]
    command += ["--require-hashes", "-r", str(REPO / "requirements" / f"{program}.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise TreeError(
            f"the {program}'s libraries for {architecture} and Python {python} could not be had: {last} ({hint})"
        )


def _libraries(program: str, architecture: str, python: str) -> Path:
    """A directory with the libraries of ``program``, made by pip from the hash-locked requirements."""
    requirements = REPO / "requirements" / f"{program}.txt"
    locked = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    target = BUILD / f"{program}-{architecture}-{python}-{locked}"
    with lock():
        if target.is_dir():
            return target
        hint = "the controller needs its package index once; after that they lie in .build/"
        offline = []
        if WHEELS.is_dir():
            hint = f"this bundle has wheels for {' and '.join(ARCHITECTURES)} with Python {', '.join(BUNDLED_PYTHONS)}"
            offline = ["--no-index", "--find-links", str(WHEELS)]
        with draft_of(target) as draft:
            action = ["install", "--no-compile", "--target", str(draft), *offline]
            pip(action, program, architecture, python, hint=hint)
            for needless in [*draft.glob("psutil/tests"), *draft.glob("bin")]:
                shutil.rmtree(needless)
    return target


def _archive(name: str, directories: list[Path], packages: list[str]) -> Path:
    """``.build/<name>-<digest>.tar.gz`` of ``directories`` and our ``packages``: the same bytes for the same contents."""
    members: dict[str, Path] = {}
    for directory in directories:
        members |= {str(p.relative_to(directory)): p for p in directory.rglob("*")}
    for package in packages:
        members |= {str(p.relative_to(REPO)): p for p in (REPO / package).rglob("*")}
    members["fury_host.py"] = REPO / "plugins" / "module_utils" / "fury_host.py"
    files = {k: p for k, p in sorted(members.items()) if p.is_file() and "__pycache__" not in k}
    digest = hashlib.sha256()
    for relative, path in files.items():
        digest.update(f"{relative}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    target = BUILD / f"{name}-{digest.hexdigest()[:12]}.tar.gz"
    with lock():
        if target.is_file():
            return target
        for old in BUILD.glob(f"{name}-????????????.tar.gz"):
            old.unlink()
        draft = target.with_suffix(".draft")
        with (
            draft.open("wb") as raw,
            gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as packed,
            tarfile.open(fileobj=packed, mode="w") as tar,
        ):
            for relative, path in files.items():
                content = path.read_bytes()
                member = tarfile.TarInfo(relative)
                member.size, member.mode = len(content), 0o755 if os.access(path, os.X_OK) else 0o644
                tar.addfile(member, io.BytesIO(content))
        draft.rename(target)
    return target


@contextmanager
def lock() -> Iterator[None]:
    """Only one process at a time builds in ``.build/``."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def draft_of(target: Path) -> Iterator[Path]:
    """A directory that becomes ``target`` once it is whole, and goes where it does not."""
    draft = Path(tempfile.mkdtemp(dir=BUILD, prefix="draft-"))
    try:
        yield draft
        draft.chmod(0o755)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def main() -> None:
    """Build the agent's archives ahead of time, so that a run needs no package index."""
    try:
        for architecture in ARCHITECTURES:
            print(f"built {agent_archive(architecture).relative_to(REPO)}")
    except TreeError as error:
        sys.exit(f"make setup: {error}")


if __name__ == "__main__":
    main()
