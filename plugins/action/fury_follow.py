# Copyright (c) 2026 The Fury authors. MIT license.
"""Action: follow a run at the collector until it has ended, with a live line on the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fury_controller.follow import Follower


class ActionModule(ActionBase):
    """Arguments: ``url``, ``run_id``, ``longest_seconds``."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = self._task.args
        stop_file = os.environ.get("FURY_STOP_FILE", "")
        line_open = False

        def say(line: str) -> None:
            nonlocal line_open
            self._display.display(("\r\x1b[K" if line_open else "") + line)
            line_open = False

        def show(line: str) -> None:
            nonlocal line_open
            self._display.display("\r\x1b[K" + line, newline=False, screen_only=True)
            line_open = True

        follower = Follower(
            url=arguments["url"],
            run_id=arguments["run_id"],
            say=say,
            show=show if os.environ.get("FURY_TERMINAL") == "1" else None,
            interrupted=lambda: bool(stop_file) and os.path.exists(stop_file),
        )
        assert task_vars is not None
        failed = {}
        for name in task_vars["fury_plan"]["agents"]:
            variables = task_vars["hostvars"][name]
            started = variables.get("__fury_agent_started", {})
            if "fury_agent_failure" in variables or started.get("unreachable"):
                failed[name] = str(variables.get("fury_agent_failure") or started.get("msg", "unreachable")).strip()
        if failed:
            for name, reason in failed.items():
                say(f"error: {name} could not be armed: {reason}")
            follower.post("stop", reason=f"{', '.join(failed)} could not be armed")
        outcome = follower.follow(longest_s=float(arguments["longest_seconds"]))
        if outcome.state in ("unreachable", "overdue"):
            say(f"error: {outcome.reason}")
        return {"changed": False, "state": outcome.state, "reason": outcome.reason}
