# Copyright (c) 2026 The Fury authors. MIT license.
"""Action: what a Prometheus of ``roles/fury_monitoring`` needs of the controller, when it is set up and in each run."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
from fury_controller import trust  # noqa: E402
from fury_controller.plan import CONTROLLERS_OWN, BadInput, is_local, make_plan  # noqa: E402

PATIENCE_S = 5.0
"""For so long a run waits for a monitoring host that does not answer."""
# Only these say where a run's collector is; what else a run is told does not matter for it, but has to be there.
WHERE = ("ansible_connection", "ansible_host", "fury_collector_address", "fury_collector_port")
LENT = {"chunk_mb": 1, "seconds": 60}
NOT_THERE = 3
# One command, to which nothing has to be copied; Ansible puts more behind it, so it may not end with a line break.
TAKE_OVER = f"""cd /etc/fury-monitoring/credentials 2>/dev/null || exit {NOT_THERE}
umask 077 && cat > .ca.pem && chgrp fury-prometheus .ca.pem && chmod 0640 .ca.pem && mv .ca.pem ca.pem"""


class _TooLong(BaseException):
    """Not an Exception: what tries again after one must not catch this."""


class ActionModule(ActionBase):
    """``do`` says what.

    plan: registers ``collector`` (host:port), ``credentials`` (directory on the controller, its files made if need be) and
    ``ready`` (whether they are there). hand_over: takes the run's authority to the host; warns where that is not possible, and
    never fails. say: prints ``lines``. look: the module of the same name.
    """

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        assert task_vars is not None
        do = self._task.args["do"]
        if do == "hand_over":
            return self._hand_over(task_vars)
        if do == "look":
            return self._execute_module(module_args={"do": "look"}, task_vars=task_vars)  # type: ignore[no-any-return]
        if do == "say":
            for line in self._task.args["lines"]:
                self._display.display(line)
            return {"changed": False}
        try:
            return self._plan(task_vars)
        except trust.NotPossible as error:
            return {"failed": True, "msg": str(error)}
        except BadInput as error:
            return {
                "failed": True,
                "msg": f"where a run's collector is can't be found out: {error}; fix it, or name the collector, "
                "for example -e fury_monitoring_collector=10.0.0.1:9475",
            }

    def _plan(self, task_vars: Mapping[str, Any]) -> dict[str, Any]:
        credentials = Path(task_vars.get("fury_credentials") or REPO / "credentials")
        ready = _has_certificate(credentials / trust.AUTHORITIES_FILE) and (credentials / trust.PASSWORD_FILE).exists()
        if ready:
            trust.password(credentials)
        elif not self._task.check_mode:
            # Before the first run. Prometheus does not start without an authority; this one can't sign for anybody.
            trust.prepare(credentials, trust.authority("none, before the first", seconds=0))
        return {
            "changed": not ready,
            "ready": ready or not self._task.check_mode,
            "credentials": str(credentials),
            "collector": str(self._task.args.get("collector") or "") or _collector(task_vars),
        }

    def _hand_over(self, task_vars: Mapping[str, Any]) -> dict[str, Any]:
        name = self._task.delegate_to or task_vars["inventory_hostname"]
        try:
            authorities = Path(task_vars["fury_plan"]["credentials"], trust.AUTHORITIES_FILE).read_bytes()
            with _within(PATIENCE_S):
                done = self._low_level_execute_command(TAKE_OVER, in_data=authorities)
        except _TooLong:
            why = f"it did not answer within {PATIENCE_S:g} s"
        except (AnsibleError, OSError) as error:
            why = " ".join(str(error).split())
        else:
            if done["rc"] == 0:
                return {"changed": True}
            why = " ".join((done["stderr"] or done["stdout"]).split()) or f"exit code {done['rc']}"
            if done["rc"] == NOT_THERE:
                why = "nothing is set up there; ansible-playbook playbooks/monitoring.yml does it"
        # Not display.warning(): that ends up in the result of a task that went well, which the terminal does not show.
        self._display.display(
            f"warning: {name}: Prometheus there will not see this run: {why}", color="yellow", stderr=True
        )
        return {"changed": False}


def _collector(task_vars: Mapping[str, Any]) -> str:
    """Host and port of the collector of a run over this inventory, as the monitoring host reaches it. Raises BadInput."""
    name, hostvars, groups = task_vars["inventory_hostname"], task_vars["hostvars"], task_vars["groups"]
    agents = groups.get("fury_agents", [])
    plan = make_plan(
        agents=agents,
        hostvars={
            host: {key: hostvars[host][key] for key in WHERE if key in hostvars[host]} | LENT
            for host in {*agents, *groups.get("fury_collector", [])}
        },
        collectors=groups.get("fury_collector", []),
        extra_vars={},
        repo=REPO,
    )
    collector = plan["collector"]
    found = str(collector["urls"].get(name) or sorted(collector["urls"].values())[0]).removeprefix("https://")
    away = not is_local(hostvars[name]) and hostvars[name].get("ansible_host", name) not in CONTROLLERS_OWN
    if away and collector["on_controller"] and found.rpartition(":")[0].strip("[]") in CONTROLLERS_OWN:
        raise BadInput(
            [f"all agents are on the controller, where {name} can't reach a collector that listens on {found}; give "
             "fury_collector_address in the inventory, which run.yml then uses as well"]
        )  # fmt: skip
    return found


def _has_certificate(path: Path) -> bool:
    try:
        return "BEGIN CERTIFICATE" in path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raises _TooLong if what is done in it takes longer; for the process of one task, whose main thread this is."""

    def ring(signum: int, frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
