# Copyright (c) 2026 The Fury authors. MIT license.
"""Action: judge everything the run was asked for, before any host is touched, and make its plan."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
from fury_controller import trust  # noqa: E402
from fury_controller.plan import BadInput, make_plan  # noqa: E402


class ActionModule(ActionBase):
    """No arguments. Sets the fact ``fury_plan`` (shape: fury_controller.plan.make_plan)."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        assert task_vars is not None
        chosen = set(task_vars["ansible_play_hosts_all"])
        groups = task_vars["groups"]
        try:
            plan = make_plan(
                agents=[name for name in groups.get("fury_agents", []) if name in chosen],
                hostvars=task_vars["hostvars"],
                collectors=groups.get("fury_collector", []),
                extra_vars=load_extra_vars(self._loader),
                repo=REPO,
            )
        except BadInput as error:
            for problem in error.problems:
                self._display.display(f"BAD_INPUT: {problem}", color="red", stderr=True)
            self._display.display("nothing was changed on any host", stderr=True)
            return {"failed": True, "fury_said": True, "msg": str(error)}
        try:
            plan["authority"] = trust.authority(plan["run_id"], seconds=plan["lease_seconds"])
            trust.prepare(Path(plan["credentials"]), plan["authority"])
        except trust.NotPossible as error:
            self._display.display(f"PRECONDITION: {error}", color="red", stderr=True)
            self._display.display("nothing was changed on any host", stderr=True)
            return {"failed": True, "fury_said": True, "msg": str(error)}
        # --become is meant for hosts; on the controller the collector is a process of the user's own.
        plan["collector"]["become"] = bool(self._task.become) and not plan["collector"]["on_controller"]
        self._display.display(plan["summary"])
        return {"changed": False, "ansible_facts": {"fury_plan": plan}}
