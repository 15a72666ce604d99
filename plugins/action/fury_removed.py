# Copyright (c) 2026 The Fury authors. MIT license.
"""Action: say what ``teardown.yml`` found and took away."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """No arguments; reads what each host of the play registered as ``fury_removed``."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        assert task_vars is not None
        found: dict[str, list[str]] = {}
        failed: dict[str, str] = {}
        for host in task_vars["ansible_play_hosts_all"]:
            result = task_vars["hostvars"][host].get("fury_removed")
            if result is None:  # a host of the inventory that is none of ours
                continue
            if "removed" in result:
                found[host] = result["removed"]
            else:
                failed[host] = result.get("msg") or "failed without a word"
        for host, removed in found.items():
            if removed:
                self._display.display(f"{host}: removed {', '.join(removed)}")
        for host, why in failed.items():
            self._display.display(f"error: {host} is not confirmed clean: {why}", color="red", stderr=True)
        if failed:
            message = (
                f"CLEANUP_UNCONFIRMED: {len(failed)} of {len(found) + len(failed)} hosts; try again when they are back"
            )
            self._display.display(message, color="red")
            return {"failed": True, "fury_said": True, "msg": message}
        if not any(found.values()):
            self._display.display("nothing of Fury was there")
        return {"changed": False}
