"""Makes the bundle: one archive from which a controller without any network sets itself up and runs (docs/airgap.md).

python -m fury_controller.bundle [--directory dist]

It holds the files that git knows, ``wheels/`` with every wheel that the lock files of controller, collector and agent name, for
each architecture and Python that a bundle serves, and the SBOM. The same commit gives the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import shutil
import sys
import tarfile
from pathlib import Path

from fury_controller import supply, tree


def wheels() -> Path:
    """A directory with all wheels, got once and again only when a lock file has changed."""
    kinds = [("agent", tree.AGENT_PYTHON), *(("controller", python) for python in tree.BUNDLED_PYTHONS)]
    digest = hashlib.sha256(repr((kinds, tree.ARCHITECTURES)).encode())
    for program in supply.PROGRAMS:
        digest.update((tree.REPO / "requirements" / f"{program}.txt").read_bytes())
    target = tree.BUILD / f"wheels-{digest.hexdigest()[:12]}"
    with tree.lock():
        if target.is_dir():
            return target
        for old in tree.BUILD.glob("wheels-????????????"):
            shutil.rmtree(old)
        with tree.draft_of(target) as draft:
            for program, python in kinds:
                for architecture in tree.ARCHITECTURES:
                    action = ["download", "--no-deps", "--dest", str(draft)]
                    tree.pip(action, program, architecture, python, hint="making a bundle needs the package index")
    return target


def make(directory: Path, *, also_untracked: bool = False) -> Path:
    """Write the archive and its SHA-256 into ``directory``; return the archive."""
    root = f"fury-{supply.version()}"
    unknown = ["--others", "--exclude-standard"] if also_untracked else []
    names = supply.git("ls-files", "-z", "--cached", *unknown).split("\0")
    members = {name: tree.REPO / name for name in names if name and (tree.REPO / name).is_file()}
    members |= {f"wheels/{path.name}": path for path in wheels().iterdir()}
    texts = {f"{root}.cdx.json": supply.sbom().encode()}
    made = supply.commit()[1]
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{root}-bundle.tar.gz"
    draft = target.with_suffix(".draft")
    with (
        draft.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=made, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted({*members, *texts}):
            content = texts[name] if name in texts else members[name].read_bytes()
            member = tarfile.TarInfo(f"{root}/{name}")
            member.size, member.mtime, member.mode = len(content), made, 0o644
            if name in members and os.access(members[name], os.X_OK):
                member.mode = 0o755
            tar.addfile(member, io.BytesIO(content))
    draft.rename(target)
    with target.open("rb") as archive:
        digest = hashlib.file_digest(archive, "sha256").hexdigest()
    target.with_name(f"{target.name}.sha256").write_text(f"{digest}  {target.name}\n")
    return target


def main() -> None:
    """Make the bundle and say what it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=supply.DIST, help="where to write it (default: dist)")
    parser.add_argument("--also-untracked", action="store_true", help="take files along that git does not know yet")
    options = parser.parse_args()
    try:
        changed = supply.git("status", "--porcelain").splitlines()
        target = make(options.directory, also_untracked=options.also_untracked)
    except (supply.SupplyError, tree.TreeError) as error:
        sys.exit(f"make bundle: {error}")
    if changed:
        print(f"note: {len(changed)} files here differ from the last commit; the bundle has them as they are here")
    print(f"made {os.path.relpath(target)}, {target.stat().st_size / 1e6:.0f} MB, and its .sha256")


if __name__ == "__main__":
    main()
