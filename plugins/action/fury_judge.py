# Copyright (c) 2026 The Fury authors. MIT license.
"""Action: write the results and show the statistics; once the hosts are clean, give the verdict."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
from fury_controller.follow import names  # noqa: E402


class ActionModule(ActionBase):
    """Arguments: ``results`` (the run's directory) and ``removed`` (true in the second call, after the teardown)."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        assert task_vars is not None
        results = Path(self._task.args["results"])
        plan = task_vars["fury_plan"]
        if not self._task.args.get("removed", False):
            return self._show(results)
        cleanup = {name: self._cleanup(task_vars["hostvars"][name]) for name in plan["agents"]}
        return self._verdict(results, cleanup, task_vars.get("fury_collector_removal_failure"))

    def _show(self, results: Path) -> dict[str, Any]:
        for command in ("export", "report"):
            failure = self._collector(command, results)
            if failure:
                self._display.display(f"error: no statistics: {failure}", color="red", stderr=True)
                return {"changed": False}
        latest = results.parent / "latest"
        draft = results.parent / ".latest.new"
        draft.unlink(missing_ok=True)
        draft.symlink_to(results.name)
        draft.replace(latest)
        self._display.display(f"results: {results}")
        return {"changed": True}

    def _verdict(
        self, results: Path, cleanup: dict[str, dict[str, Any]], collector_failure: str | None
    ) -> dict[str, Any]:
        unclean = [name for name, found in cleanup.items() if found["cleanup"] != "confirmed"]
        for name in unclean:
            self._display.display(
                f"error: {name} is not confirmed clean: {cleanup[name]['detail']}", color="red", stderr=True
            )
        if collector_failure:
            self._display.display(
                f"error: the collector is not confirmed clean: {collector_failure}", color="red", stderr=True
            )
        if unclean or collector_failure:
            self._display.display(
                f"torn down: {len(cleanup) - len(unclean)} of {len(cleanup)} agents; the rest removes itself when its lease is "
                "over, or at once with: ansible-playbook teardown.yml"
            )
        else:
            self._display.display(f"torn down: nothing of Fury is left on the hosts of {names(list(cleanup))}")
        note = results / ".hosts.json"
        note.write_text(json.dumps(cleanup))
        failure = self._collector("export", results, "--hosts", str(note))
        note.unlink()
        if failure:
            return self._end("INCOMPLETE", f"no results: {failure}")
        summary = json.loads((results / "summary.json").read_text())
        verdict, reason = summary["verdict"], summary["reason"]
        if verdict == "PASS" and collector_failure:
            verdict, reason = "CLEANUP_UNCONFIRMED", f"the collector is not confirmed clean: {collector_failure}"
        return self._end(verdict, reason)

    def _end(self, verdict: str, reason: str) -> dict[str, Any]:
        passed = verdict == "PASS"
        self._display.display(f"{verdict}: {reason}", color="green" if passed else "red")
        return {
            "changed": False,
            "failed": not passed,
            "fury_said": True,
            "verdict": verdict,
            "msg": f"{verdict}: {reason}",
        }

    def _collector(self, command: str, results: Path, *more: str) -> str | None:
        """Run one of the collector's commands on the run's database; the reason if it fails. What it prints is shown."""
        argv = [
            sys.executable,
            "-m",
            "fury_collector",
            command,
            "latest",
            "--database",
            str(results / "fury.db"),
            *more,
        ]
        if command == "export":
            argv += ["--output", str(results)]
        done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, check=False)
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"{command} ended with {done.returncode}"])[-1]
        if command == "report":
            self._display.display(done.stdout.rstrip("\n"))
        return None

    @staticmethod
    def _cleanup(variables: Mapping[str, Any]) -> dict[str, Any]:
        removed: Mapping[str, Any] = variables.get("__fury_agent_removed", {})
        failure = variables.get("fury_agent_removal_failure")
        if removed.get("unreachable"):
            return {
                "reachable": False,
                "cleanup": "unconfirmed",
                "detail": f"unreachable: {removed.get('msg', '')}".strip(),
            }
        if failure or "removed" not in removed:
            return {"reachable": True, "cleanup": "unconfirmed", "detail": failure or "its removal did not run"}
        return {"reachable": True, "cleanup": "confirmed", "detail": ""}
