"""Fixtures on real hosts: a fleet of Debian 11, 12 and 13 for the session, and testinfra's eyes on each of them.

A test that breaks hosts makes a fleet of its own: `with Fleet([HostSpec("deb12", "bookworm", disk_mb=200)]) as fleet`
takes about a second and a half.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import pytest
import testinfra

from tests.hosts.lab import Fleet, available


@pytest.fixture(scope="session")
def lab() -> None:
    """Skip where the lab cannot run, with the reason; in CI, where nothing may skip, fail."""
    reason = available()
    if reason is not None and os.environ.get("CI"):
        pytest.fail(f"in CI the tests on real hosts must run, but {reason}")
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def fleet(lab: None) -> Iterator[Fleet]:
    """Hosts `deb11`, `deb12` and `deb13`, shared by the session: leave them as they were."""
    with Fleet() as fleet:
        yield fleet


@pytest.fixture(scope="session")
def infra(fleet: Fleet) -> Mapping[str, testinfra.host.Host]:
    """testinfra's view of each host by name: `infra["deb12"].service("ssh").is_running`."""
    # No persistent connections: one that outlives a reboot or a pulled cable would hang the next look.
    options = {"ssh_config": str(fleet.ssh_config), "controlpersist": 0}
    return {host.name: testinfra.get_host(f"ssh://{host.name}", **options) for host in fleet.hosts}
