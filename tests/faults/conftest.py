"""Fleets for tests that break hosts: each module brings up its own and takes it down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.stress import Stress
from tests.hosts.conftest import lab
from tests.hosts.lab import Fleet

__all__ = ["lab"]


@pytest.fixture
def stress(tmp_path: Path) -> Iterator[Callable[..., Stress]]:
    """Starts runs over a fleet; ends and removes what a failed test leaves of them."""
    started: list[Stress] = []

    def start(fleet: Fleet, **variables: Any) -> Stress:
        started.append(Stress(fleet, tmp_path, variables))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.teardown()
