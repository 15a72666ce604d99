"""What Fury depends on: locked with hashes, licensed so that it may be passed on, and told in the SBOM."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fury_controller import supply, tree

REQUIREMENTS = sorted((Path(__file__).parents[1] / "requirements").glob("*.txt"))

# Under the GPL, and why that is no obstacle: docs/dependencies.md. No other package may be, unless it is added here on purpose.
UNDER_GPL = {"ansible-core": "a program that the controller runs; plugins/ import it, under MIT, which the GPL allows"}


def refused(packages: list[supply.Package]) -> list[str]:
    """Names of packages that Fury links or brings under AGPL, GPL or LGPL without being named above."""
    parts = [package for package in packages if package.used_by != ("dev",)]
    return [p.name for p in parts if re.search(r"\bA?L?GPL", p.licence) and p.name not in UNDER_GPL]


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_every_locked_package_has_a_version_and_hashes_and_no_index_is_named(path: Path) -> None:
    """One requirement a line, each with ==, each followed by hashes; no option, no address."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.M).replace("\\\n", " ")
    for line in filter(None, text.splitlines()):
        assert re.fullmatch(r"[\w.-]+==\S+( ; [^#]*?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", line), line[:80]


def test_a_version_is_the_same_in_every_lock() -> None:
    """The agent's and the collector's locks are parts of the controller's, and that of development's."""
    agent, collector, controller, dev = (supply.locked(name) for name in ("agent", "collector", "controller", "dev"))
    assert agent.items() | collector.items() <= controller.items() <= dev.items()


RUNS_ON = [(program, python) for program in supply.PROGRAMS for python in tree.BUNDLED_PYTHONS]


@pytest.mark.parametrize(("program", "python"), [("agent", tree.AGENT_PYTHON), ("agent", "3.10"), *RUNS_ON])
def test_a_lock_holds_for_every_python_and_architecture(program: str, python: str) -> None:
    """It was made with one Python on one machine; no package asks for another one elsewhere."""
    locked = supply.locked(program)
    for name in locked:
        for architecture in tree.ARCHITECTURES:
            elsewhere = {
                "python_version": python,
                "python_full_version": f"{python}.0",
                "platform_machine": architecture,
            }
            assert set(supply.needs(name, elsewhere)) <= set(locked), name


def test_nothing_that_is_linked_or_vendored_is_under_a_gpl_but_ansible() -> None:
    """The exception is named, and it is one still."""
    packages = [*supply.packages(), *supply.vendored()]
    assert refused(packages) == []
    assert {p.name for p in packages if p.name in UNDER_GPL and "GPL" in p.licence} == set(UNDER_GPL)
    assert "**ansible-core is under\nthe GPL" in supply.DEPENDENCIES.read_text()


@pytest.mark.parametrize("licence", ["AGPL-3.0-only", "GPL-2.0-or-later", "LGPL-2.1-only", "MIT AND GPL-3.0-only"])
def test_a_package_under_a_gpl_would_be_refused(licence: str) -> None:
    """In whatever part of its licence it stands."""
    assert refused([supply.Package("readline", "1", licence, ("agent",))]) == ["readline"]


def test_the_sbom_names_everything_that_fury_consists_of() -> None:
    """Each package of the three locks and uPlot, each with a licence and who uses it; no tool of development."""
    bom = json.loads(supply.sbom())
    parts = {part["name"]: part for part in bom["components"] if part["type"] == "library"}
    assert set(parts) == {*supply.locked("controller"), "uplot"}
    assert all(part["licenses"] and part["version"] and part["purl"] for part in parts.values())
    assert parts["uplot"]["purl"].startswith("pkg:npm/uplot@")
    edges = {edge["ref"]: set(edge.get("dependsOn", [])) for edge in bom["dependencies"]}
    assert edges["fury"] == {f"fury-{program}" for program in supply.PROGRAMS}
    for program in supply.PROGRAMS:
        locked = {f"pkg:pypi/{name}@{version}" for name, version in supply.locked(program).items()}
        assert edges[f"fury-{program}"] - {parts["uplot"]["purl"]} == locked
    assert parts["werkzeug"]["purl"] in edges[parts["flask"]["purl"]]
    assert bom["metadata"]["component"]["version"] == supply.version()


def test_the_sbom_is_the_same_for_the_same_commit() -> None:
    """No time and no number of its own."""
    assert supply.sbom() == supply.sbom()
