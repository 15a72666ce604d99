# Copyright (c) 2026 The Fury authors. MIT license.
"""The controller's half of ``fury_service``: hands archive and secrets over and runs the module, in one task."""

from __future__ import annotations

import base64
import hashlib
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fury_controller import trust

CLOCK_S = trust.EARLY_S - 600  # a host's clock may be off by so much, and certificates are still valid there


class ActionModule(ActionBase):
    """Replaces the controller's path of ``archive`` by that of its copy on the host, and adds its digest.

    What the run gives the service to be known by is made here, and never is in a task's arguments or in a fact.
    """

    TRANSFERS_FILES = False  # true would make and remove a directory on the host for every state

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        log_to = arguments.pop("log_to", None)
        if log_to:
            arguments["fetch_log"] = True
        archive = arguments.get("archive")
        if archive and arguments.get("state") == "started":
            arguments["digest"] = hashlib.sha256(Path(archive).read_bytes()).hexdigest()
            if not self._task.check_mode and self._connection.transport != "local":
                self._make_tmp_path()
                remote = self._connection._shell.join_path(self._connection._shell.tmpdir, "tree.tar.gz")
                arguments["archive"] = self._transfer_file(archive, remote)
                self._fixup_perms2((self._connection._shell.tmpdir, remote))
        plan = (task_vars or {}).get("fury_plan")
        try:
            if plan is not None and arguments.get("state") == "started" and not arguments.get("secrets"):
                arguments["secrets"] = (
                    trust.collector_files(plan)
                    if arguments.get("kind") == "collector"
                    else trust.agent_files(plan, arguments["name"])
                )
            asked = time.time()
            result: dict[str, Any] = self._execute_module(module_args=arguments, task_vars=task_vars)
            self._keep_log(result.pop("log", ""), log_to)
            return self._judged(result, asked, time.time())
        except trust.NotPossible as error:
            return {"failed": True, "msg": str(error)}
        finally:
            if self._connection._shell.tmpdir:
                self._remove_tmp_path(self._connection._shell.tmpdir)

    @staticmethod
    def _keep_log(packed: str, path: str | None) -> None:
        """Write what the program printed to the controller; nothing where it was removed before."""
        log = zlib.decompress(base64.b64decode(packed)) if packed else b""
        if path and log:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(log)

    def _judged(self, result: dict[str, Any], asked: float, answered: float) -> dict[str, Any]:
        """The result, failed where the host's clock is not one by which the run's certificates are valid."""
        clock = result.get("clock")
        if clock is None or asked - CLOCK_S <= clock <= answered + CLOCK_S:
            return result
        off = clock - answered
        return {
            **result,
            "failed": True,
            "msg": f"its clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the controller's, and up to {CLOCK_S} s "
            "are allowed, for the run's certificates to be valid there; set the clock right (or the controller's)",
        }
