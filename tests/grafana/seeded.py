"""Defects to be put into a dashboard, for the checks to find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grafana import checks

Tree = dict[str, Any]


def panel(dashboard: Tree, title: str) -> Tree:
    """Returns the only panel of this title."""
    (found,) = [each for each in checks.panels(dashboard) if each["title"] == title]
    return found


def put(title: str, path: str, value: object) -> Callable[[Tree], None]:
    """Returns a defect: the key at `path` (dots between) of the panel becomes `value`."""

    def mutate(dashboard: Tree) -> None:
        tree: Any = panel(dashboard, title)
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in parents:
            tree = tree[part]
        assert tree[last] != value
        tree[last] = value

    return mutate
