# Copyright (c) 2026 The Fury authors. MIT license.
"""The controller's half of ``fury_service``: hands the archive over and runs the module, in one task."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Replaces the controller's path of ``archive`` by that of its copy on the host, and adds its digest."""

    TRANSFERS_FILES = False  # true would make and remove a directory on the host for every state

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        archive = arguments.get("archive")
        if archive and arguments.get("state") == "started":
            arguments["digest"] = hashlib.sha256(Path(archive).read_bytes()).hexdigest()
            if not self._task.check_mode and self._connection.transport != "local":
                self._make_tmp_path()
                remote = self._connection._shell.join_path(self._connection._shell.tmpdir, "tree.tar.gz")
                arguments["archive"] = self._transfer_file(archive, remote)
                self._fixup_perms2((self._connection._shell.tmpdir, remote))
        try:
            result: dict[str, Any] = self._execute_module(module_args=arguments, task_vars=task_vars)
            return result
        finally:
            if self._connection._shell.tmpdir:
                self._remove_tmp_path(self._connection._shell.tmpdir)
