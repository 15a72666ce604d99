# Copyright (c) 2026 The Fury authors. MIT license.
"""Action: follow a run at the collector until it has ended, with a live line on the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fury_controller import interrupt, trust
from fury_controller.follow import Follower


class ActionModule(ActionBase):
    """Arguments: ``url``, ``run_id``. Returns ``rescue``, the agents whose events are not all at the collector."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = self._task.args
        assert task_vars is not None
        plan = task_vars["fury_plan"]
        line_open = False

        def say(line: str) -> None:
            nonlocal line_open
            self._display.display(("\r\x1b[K" if line_open else "") + line)
            line_open = False

        columns = int(os.environ.get("FURY_COLUMNS", "80"))

        def show(line: str) -> None:
            nonlocal line_open
            line = line[: columns - 1]  # a line that wraps can't be replaced
            self._display.display("\r\x1b[K" + line, newline=False, screen_only=True)
            line_open = True

        follower = Follower(
            url=arguments["url"],
            run_id=arguments["run_id"],
            say=say,
            show=show if os.environ.get("FURY_TERMINAL") == "1" else None,
            interrupted=interrupt.asked,
            opener=trust.opener(plan["authority"], trust.control_token(plan["run_id"])),
            reading=f"user {trust.READER}, password in {Path(plan['credentials']) / trust.PASSWORD_FILE}",
        )
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
        outcome = follower.follow(arming_s=plan["barrier_seconds"] + 30, running_s=plan["running_seconds"])
        if outcome.state == "unreachable":
            say(f"error: {outcome.reason}")
        delivered = {agent["name"] for agent in outcome.agents if agent["receipt"]}
        # What the others still have is fetched from their hosts.
        rescue = [] if outcome.state == "aborted" else [name for name in plan["agents"] if name not in delivered]
        return {"changed": False, "state": outcome.state, "reason": outcome.reason, "rescue": rescue}
