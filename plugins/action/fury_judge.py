# Copyright (c) 2026 The Fury authors. MIT license.
"""Action: once the hosts are clean, write the results, show the statistics and give the verdict."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
from fury_controller import grafana  # noqa: E402
from fury_controller.follow import names  # noqa: E402


class ActionModule(ActionBase):
    """No arguments; reads the plan and what each agent's host registered of its removal. Fails unless the verdict is PASS."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        assert task_vars is not None
        plan = task_vars["fury_plan"]
        results = Path(plan["results"])
        cleanup = {name: self._cleanup(task_vars["hostvars"][name]) for name in plan["agents"]}
        journals = self._journals(results, plan["agents"])
        failure = self._collector("ingest", results, *journals) if journals else None
        failure = self._export(results, cleanup) or failure
        if failure is None:
            self._point_latest_to(results)
            self._display.display(f"results: {results}")
        unclean = {name: found["detail"] for name, found in cleanup.items() if found["cleanup"] != "confirmed"}
        if "fury_collector_removal_failure" in task_vars:
            unclean["the collector"] = task_vars["fury_collector_removal_failure"]
        for name, detail in unclean.items():
            self._display.display(f"error: {name} is not confirmed clean: {detail}", color="red", stderr=True)
        if unclean:
            self._display.display(
                f"torn down but for {names(list(unclean))}, which removes itself when its lease is over; "
                "at once with: ansible-playbook teardown.yml"
            )
        else:
            self._display.display(f"torn down: nothing of Fury is left on the hosts of {names(list(cleanup))}")
        if failure is not None:
            return self._end("INCOMPLETE", f"no results: {failure}")
        summary = json.loads((results / "summary.json").read_text())
        link = grafana.link(plan["grafana_url"], summary) if plan["grafana_url"] else None
        if link is not None:
            self._display.display(f"grafana: {link}")
        if summary["verdict"] == "PASS" and unclean:
            return self._end("CLEANUP_UNCONFIRMED", f"{names(list(unclean))} not confirmed clean; all else passed")
        return self._end(summary["verdict"], summary["reason"])

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

    def _export(self, results: Path, cleanup: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Write the results out of the database and show the statistics; the reason if that fails."""
        note = results / ".hosts.json"
        try:
            note.write_text(json.dumps(cleanup))
            return self._collector("export", results, "--output", str(results), "--hosts", str(note))
        except OSError as error:
            return f"{results} cannot be written to: {error.strerror}"
        finally:
            with contextlib.suppress(OSError):
                note.unlink()

    @staticmethod
    def _journals(results: Path, agents: Iterable[str]) -> list[str]:
        """The fetched journals of agents whose events did not all get through, as the collector's command takes them."""
        fetched = {name: results / "agents" / name / "journal.db" for name in agents}
        return [f"{name}={path}" for name, path in fetched.items() if path.exists()]

    def _collector(self, command: str, results: Path, *more: str) -> str | None:
        """Run one of the collector's commands on the run's database and show what it says; the reason if it fails."""
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
        done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, check=False)
        said = done.stdout.rstrip()
        if command == "export":  # its last paragraph is the verdict, which comes last here too
            said, _, _ = said.rpartition("\n\n")
        if said:
            self._display.display(said)
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"{command} ended with {done.returncode}"])[-1]
        return None

    @staticmethod
    def _point_latest_to(results: Path) -> None:
        draft = results.parent / ".latest.new"
        draft.unlink(missing_ok=True)
        draft.symlink_to(results.name)
        draft.replace(results.parent / "latest")

    @staticmethod
    def _cleanup(variables: Mapping[str, Any]) -> dict[str, Any]:
        asked = [variables.get(f"__fury_agent_{what}", {}) for what in ("stopped", "journal", "removed")]
        removed: Mapping[str, Any] = asked[-1]
        if "removed" in removed:
            return {"reachable": True, "cleanup": "confirmed", "detail": ""}
        for answer in (answer for each in asked for answer in (*each.get("results", ()), each)):
            if answer.get("unreachable"):
                detail = f"unreachable: {answer.get('msg', '')}".strip()
                return {"reachable": False, "cleanup": "unconfirmed", "detail": detail}
        detail = variables.get("fury_agent_removal_failure", "its removal did not run")
        if removed.get("skipped"):
            failure = variables.get("fury_agent_gather_failure", "failed without a word")
            detail = f"its events could not be fetched ({failure}) and stay there until then"
        return {"reachable": True, "cleanup": "unconfirmed", "detail": detail}
