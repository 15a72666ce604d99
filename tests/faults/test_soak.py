"""The soak in short: `make soak` is the long one, FURY_SOAK_MINUTES anything between."""

from __future__ import annotations

import os
import random

import pytest

from tests.faults.soak import KINDS, SECONDS, draw, main

MINUTES = float(os.environ.get("FURY_SOAK_MINUTES", "2"))


def test_a_seed_gives_the_same_faults_again() -> None:
    """Faults of one seed are equal, of all kinds over time, and over before the stress is."""
    hosts = ("deb11", "deb12", "deb13")
    one, other = random.Random(7), random.Random(7)
    drawn = [draw(one, hosts) for _ in range(200)]
    assert drawn == [draw(other, hosts) for _ in range(200)]
    assert {fault.kind for faults in drawn for fault in faults} == set(KINDS)
    for faults in drawn:
        assert 2 <= len(faults) <= 4
        assert len({(fault.kind, fault.host) for fault in faults}) == len(faults)
        assert all(fault.at_s + fault.lasts_s < SECONDS for fault in faults)


@pytest.mark.hosts
@pytest.mark.timeout(MINUTES * 60 + 300)
def test_random_faults_lose_nothing_double_nothing_and_leave_nothing(
    lab: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every run passes, the oracle agrees with each, and no host keeps anything."""
    code = main(["--minutes", str(MINUTES)])
    out = capfd.readouterr().out
    print(out)
    assert code == 0, out
    assert out.startswith("seed ")
    assert " 0 lost, 0 doubled; 0 leftovers" in out.splitlines()[-1]
