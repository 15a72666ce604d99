"""What Fury consists of besides its own code: the SBOM (CycloneDX) and docs/dependencies.md, both made from the lock files.

python -m fury_controller.supply sbom | licences [--check]

Names, versions and who needs what come from requirements/*.txt and from the metadata of what is installed. Needs the
requirements of development; nothing of a run imports this.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import uuid
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata

import tomllib
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.spdx import is_expression
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fury_controller.tree import REPO

DIST = REPO / "dist"
DEPENDENCIES = REPO / "docs" / "dependencies.md"
PROGRAMS = ("agent", "collector", "controller")  # in the order in which their lock files include each other

# What the metadata of a package does not say in SPDX's words, as read in its licence file.
READ = {
    "ansible-core": "GPL-3.0-or-later",
    "arrow": "Apache-2.0",
    "ddsketch": "Apache-2.0",
    "defusedxml": "PSF-2.0",
    "distro": "Apache-2.0",
    "grafana-foundation-sdk": "Apache-2.0",
    "hdrhistogram": "Apache-2.0",
    "isoduration": "ISC",
    "itsdangerous": "BSD-3-Clause",
    "jinja2": "BSD-3-Clause",
    "pathspec": "MPL-2.0",
    "promql-parser": "MIT",
    "pytest-testinfra": "Apache-2.0",
    "resolvelib": "ISC",
    "sortedcontainers": "Apache-2.0",
}


class SupplyError(Exception):
    """The supply can't be told; the sentence says why and what to do."""


@dataclass(frozen=True)
class Package:
    """A package of a lock file or a vendored one, with its SPDX licence expression and the names of what it needs itself."""

    name: str
    version: str
    licence: str
    used_by: tuple[str, ...]
    needs: tuple[str, ...] = ()
    registry: str = "pypi"  # the type of its package URL


def version() -> str:
    """Fury's own version."""
    return str(tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"])


def locked(program: str) -> dict[str, str]:
    """Names and versions in the lock file of ``program``."""
    text = (REPO / "requirements" / f"{program}.txt").read_text()
    return {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.M)}


def needs(name: str, environment: dict[str, str] | None = None) -> tuple[str, ...]:
    """What the package ``name`` needs itself here, or where ``environment`` (PEP 508's markers) holds."""
    wanted = [Requirement(line) for line in metadata.requires(name) or []]
    marked = {"extra": "", **(environment or {})}
    return tuple(sorted({canonicalize_name(r.name) for r in wanted if r.marker is None or r.marker.evaluate(marked)}))


def packages() -> list[Package]:
    """Everything that the lock files name, sorted by name; ``used_by`` is ("dev",) for what is no part of Fury."""
    locks = {program: locked(program) for program in (*PROGRAMS, "dev")}
    found = []
    for name, number in sorted(locks["dev"].items()):
        used_by = tuple(program for program in PROGRAMS if name in locks[program]) or ("dev",)
        found.append(Package(name, number, _licence(name), used_by, needs(name)))
    return found


def vendored() -> list[Package]:
    """What lies in the tree in a copy of its own."""
    readme = REPO / "fury_collector/static/vendor/uplot/README.md"
    said = re.match(r"uPlot (\S+), (\S+) ", readme.read_text())
    if said is None:
        raise SupplyError(f'{readme.relative_to(REPO)} does not begin with "uPlot <version>, <licence>"; write it so')
    return [Package("uplot", said[1], said[2], ("collector",), registry="npm")]


def _licence(name: str) -> str:
    """The SPDX licence expression of the installed package ``name``."""
    try:
        told = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        raise SupplyError(f"{name} is locked but not installed; run make setup lint") from None
    for licence in (*told.get_all("License-Expression", []), READ.get(name), *told.get_all("License", [])):
        if licence and is_expression(licence):
            return str(licence)
    if "License :: OSI Approved :: MIT License" in told.get_all("Classifier", []):
        return "MIT"
    raise SupplyError(
        f"{name} names no licence in SPDX's words; read its licence file and add it to READ in fury_controller/supply.py"
    )


def git(*arguments: str) -> str:
    """What git says about this checkout."""
    done = subprocess.run(["git", *arguments], cwd=REPO, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SupplyError(f"this needs a git checkout, but git {arguments[0]} says: {done.stderr.strip()}")
    return done.stdout


def commit() -> tuple[str, int]:
    """The last commit and its time in seconds since the epoch."""
    name, made = git("log", "-1", "--format=%H %ct").split()
    return name, int(made)


def sbom() -> str:
    """The SBOM as CycloneDX 1.6 JSON, valid by its schema; the same text for the same commit."""
    licences = LicenseFactory()
    last, made = commit()

    def component(package: Package) -> Component:
        url = PackageURL(package.registry, None, package.name, package.version)
        return Component(
            name=package.name,
            version=package.version,
            type=ComponentType.LIBRARY,
            bom_ref=str(url),
            purl=url,
            licenses=[licences.make_from_string(package.licence)],
            properties=[Property(name="fury:used-by", value=program) for program in package.used_by],
        )

    def own(name: str) -> Component:
        mit = [licences.make_from_string("MIT")]
        return Component(name=name, version=version(), type=ComponentType.APPLICATION, bom_ref=name, licenses=mit)

    parts = [package for package in (*packages(), *vendored()) if package.used_by != ("dev",)]
    of = {package.name: component(package) for package in parts}
    programs = {program: own(f"fury-{program}") for program in PROGRAMS}
    fury = own("fury")
    fury.properties.add(Property(name="fury:commit", value=last))
    about = BomMetaData(component=fury, timestamp=datetime.fromtimestamp(made, timezone.utc))
    bom = Bom(components=[*programs.values(), *of.values()], metadata=about)
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, f"fury {version()} {last} {sorted(of)}")
    bom.register_dependency(fury, programs.values())
    for program, its in programs.items():
        bom.register_dependency(its, [of[package.name] for package in parts if program in package.used_by])
    for package in parts:
        bom.register_dependency(of[package.name], [of[name] for name in package.needs if name in of])
    text: str = JsonV1Dot6(bom).output_as_string(indent=2)
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:
        raise SupplyError(f"the SBOM is not valid by CycloneDX' schema: {wrong}")
    return text + "\n"


def dependencies() -> str:
    """The text of docs/dependencies.md."""
    parts = packages()
    rows = [
        f"| {p.name} {p.version} | {p.licence} | {', '.join(p.used_by)} |" for p in parts if p.used_by != ("dev",)
    ] + [f"| {p.name} {p.version}, vendored | {p.licence} | {', '.join(p.used_by)} |" for p in vendored()]
    tools = [f"{p.name} {p.version} ({p.licence})" for p in parts if p.used_by == ("dev",)]
    return PAGE.format(rows="\n".join(rows), tools=",\n".join(tools))


PAGE = """# Dependencies and their licences

Written by `make licences` from the lock files in `requirements/` and the metadata of what is installed; `make lint` fails when
it is out of date. `make sbom` writes the same as CycloneDX 1.6 JSON, with who needs what; a bundle holds that too.

Fury is under the MIT licence. What it links or brings is under permissive licences, with one exception: **ansible-core is under
the GPL, version 3 or later.** Fury runs it as a program on the controller; the files in `plugins/` run inside it and import it
(the modules among them only `ansible.module_utils.basic`, which is BSD-2-Clause), and their MIT licence allows that. Nothing of
ansible-core goes into an agent's or a collector's archive. A bundle holds its wheel, unchanged, source and licence text included:
who passes a bundle on passes on ansible-core under the GPL.

| package | licence | used by |
|---|---|---|
{rows}

Wheels bring compiled libraries along: cryptography brings OpenSSL (Apache-2.0), gevent libev (BSD-2-Clause or GPL-2.0-or-later,
at the user's choice), libuv and c-ares (MIT), cffi libffi (MIT), PyYAML libyaml (MIT).

## Known vulnerabilities

An advisory database that works without the Internet could not be had, so **this is not exercised in CI**. With Internet:

    pipx run pip-audit --strict --disable-pip --require-hashes -r requirements/controller.txt

`--strict` matters: without it, a package that the service does not know is passed over with exit code 0. The controller's lock
holds everything that the agent's and the collector's hold. Scanners that read CycloneDX take `dist/fury-<version>.cdx.json`.

## Tools of lint and tests

Never part of Fury, of a bundle or of what comes to a host:
{tools}.
"""


def main() -> None:
    """Write the SBOM or docs/dependencies.md, or tell whether the latter is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sbom", "licences"])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where docs/dependencies.md is out of date"
    )
    options = parser.parse_args()
    try:
        if options.what == "sbom":
            DIST.mkdir(exist_ok=True)
            target = DIST / f"fury-{version()}.cdx.json"
            target.write_text(sbom())
            print(f"wrote {target.relative_to(REPO)}")
        elif not options.check:
            DEPENDENCIES.write_text(dependencies())
        elif DEPENDENCIES.read_text() != dependencies():
            raise SupplyError(f"{DEPENDENCIES.relative_to(REPO)} is out of date; run make licences")
    except SupplyError as error:
        sys.exit(f"supply: {error}")


if __name__ == "__main__":
    main()
