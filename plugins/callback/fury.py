# Copyright (c) 2026 The Fury authors. MIT license.
"""Terminal output of Fury: what the run says, and failures in one sentence. With -v it is Ansible's own default output."""

from __future__ import annotations

DOCUMENTATION = """
name: fury
type: stdout
short_description: Fury's words and nothing else; with -v Ansible's default output
description:
  - Tasks that go well print nothing; Fury's actions speak for themselves. What fails is one sentence for each host.
  - The first Ctrl-C asks the run to stop, be gathered and be cleaned up. The second one leaves at once; the hosts then
    clean themselves when their lease is over.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""

import contextlib  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from types import FrameType  # noqa: E402
from typing import Any  # noqa: E402

from ansible import constants as C  # noqa: E402
from ansible.plugins.callback.default import CallbackModule as DefaultCallback  # noqa: E402

QUIET = ("v2_playbook_on_play_start", "v2_playbook_on_task_start", "v2_runner_on_ok", "v2_runner_on_skipped",
         "v2_runner_item_on_ok", "v2_runner_item_on_skipped", "v2_runner_retry", "v2_playbook_on_stats",
         "v2_playbook_on_include", "v2_on_file_diff", "v2_playbook_on_handler_task_start",
         "v2_playbook_on_cleanup_task_start")  # fmt: skip


def _quiet(name: str) -> Any:
    def method(self: CallbackModule, *args: Any, **kwargs: Any) -> None:
        if self._display.verbosity:
            getattr(super(CallbackModule, self), name)(*args, **kwargs)

    return method


def _is_rescued(task: Any) -> bool:
    """True where a rescue section follows the failed task; what is said of the failure is said there."""
    inner, outer = task, task._parent
    while outer is not None:
        if getattr(outer, "rescue", None) and inner in outer.block:
            return True
        inner, outer = outer, outer._parent
    return False


class CallbackModule(DefaultCallback):
    """See DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "fury"

    for _name in QUIET:
        locals()[_name] = _quiet(_name)

    def v2_playbook_on_start(self, playbook: Any) -> None:
        super().v2_playbook_on_start(playbook)
        self._stop_directory = tempfile.mkdtemp(prefix="fury-")
        stop_file = os.path.join(self._stop_directory, "stop")
        # Workers inherit these; fury_follow reads them there.
        os.environ["FURY_STOP_FILE"] = stop_file
        os.environ["FURY_TERMINAL"] = "1" if sys.stdout.isatty() and not self._display.verbosity else "0"
        leave_at_once = signal.getsignal(signal.SIGINT)

        def stop(signum: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, leave_at_once)
            with open(stop_file, "w", encoding="ascii"):
                pass
            os.write(2, b"\nCtrl-C: the run is being stopped and cleaned up. Once more to leave at once; "
                        b"hosts then clean themselves when their lease is over.\n")  # fmt: skip

        signal.signal(signal.SIGINT, stop)
        main_process = os.getpid()

        import atexit

        def forget() -> None:
            if os.getpid() == main_process:
                shutil.rmtree(self._stop_directory, ignore_errors=True)

        atexit.register(forget)

    def v2_playbook_on_no_hosts_matched(self) -> None:
        self._display.display("BAD_INPUT: no host matches; name agents in the inventory's group fury_agents, "
                              "and check --limit", color=C.COLOR_ERROR)  # fmt: skip
        raise SystemExit(2)

    def v2_playbook_on_no_hosts_remaining(self) -> None:
        if self._display.verbosity:
            super().v2_playbook_on_no_hosts_remaining()

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if self._display.verbosity:
            super().v2_runner_on_failed(result, ignore_errors)
            return
        if ignore_errors or result.result.get("fury_said") or _is_rescued(result.task):
            return
        with contextlib.suppress(Exception):  # warnings must not hide the failure itself
            self._handle_warnings(result.result)
        message = result.result.get("msg") or result.result.get("module_stderr") or "failed without a word; try -v"
        where = "" if result.task.run_once else f"{result.host.get_name()}: "
        self._display.display(f"error: {where}{str(message).strip()}", color=C.COLOR_ERROR, stderr=True)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        self.v2_runner_on_failed(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        if self._display.verbosity:
            super().v2_runner_on_unreachable(result)
            return
        if result.task.ignore_unreachable:  # the play goes on without this host and tells of it itself
            return
        name = result.host.get_name()
        self._display.display(
            f"error: {name} is unreachable: {str(result.result.get('msg', '')).strip()}; "
            f"make `ssh {name}` work, or leave it out with --limit '!{name}'",
            color=C.COLOR_UNREACHABLE,
            stderr=True,
        )
