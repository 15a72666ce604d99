# Copyright (c) 2026 The Fury authors. MIT license.
"""Terminal output of Fury: what the run says, and failures in one sentence. With -v it is Ansible's own default output."""

from __future__ import annotations

DOCUMENTATION = """
name: fury
type: stdout
short_description: Fury's words and nothing else; with -v Ansible's default output
description:
  - Tasks that go well print nothing; Fury's actions speak for themselves. What fails is one sentence for each host.
  - The first Ctrl-C or SIGTERM asks the run to stop, be gathered and be cleaned up. The second one leaves at once; the hosts then
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
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from types import FrameType  # noqa: E402
from typing import Any  # noqa: E402

from ansible import constants as C  # noqa: E402
from ansible import context  # noqa: E402
from ansible.plugins.callback.default import CallbackModule as DefaultCallback  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fury_controller import interrupt, trust  # noqa: E402

QUIET = ("v2_playbook_on_task_start", "v2_runner_on_ok", "v2_runner_on_skipped",
         "v2_runner_item_on_ok", "v2_runner_item_on_skipped", "v2_runner_retry",
         "v2_playbook_on_include", "v2_on_file_diff", "v2_playbook_on_handler_task_start",
         "v2_playbook_on_cleanup_task_start")  # fmt: skip


def _quiet(name: str) -> Any:
    def method(self: CallbackModule, *args: Any, **kwargs: Any) -> None:
        if self._display.verbosity:
            getattr(super(CallbackModule, self), name)(*args, **kwargs)

    return method


class _Lasting:
    """A stream that goes on into nothing when its reader is gone: hosts are to be cleaned even if nobody reads of it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._outliving():
            self._stream.write(text)
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        with self._outliving():
            self._stream.flush()

    @contextlib.contextmanager
    def _outliving(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_rescued(task: Any) -> bool:
    """True where a rescue section follows the failed task; what is said of the failure is said there."""
    inner, outer = task, task._parent
    while outer is not None:
        if getattr(outer, "rescue", None):
            # Compared by uuid: what runs is a copy of what stands in the block.
            return inner._uuid not in {one._uuid for one in outer.rescue + outer.always}
        inner, outer = outer, outer._parent
    return False


class CallbackModule(DefaultCallback):
    """See DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "fury"

    for _name in QUIET:
        locals()[_name] = _quiet(_name)

    _in_preflight = False
    _in_gathering = False
    _failed_early = False

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._in_preflight = play.get_name() == "Look at the hosts"
        self._in_gathering = play.get_name() == "Gather"
        self._asked_again: set[str] = set()
        if self._display.verbosity:
            super().v2_playbook_on_play_start(play)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        if self._failed_early:
            self._display.display("PRECONDITION: nothing was changed on any host", color=C.COLOR_ERROR)
        elif context.CLIARGS.get("check") and not stats.failures and not stats.dark:
            self._display.display("check: every host can do this; nothing was changed")
        if self._display.verbosity:
            super().v2_playbook_on_stats(stats)

    def v2_playbook_on_start(self, playbook: Any) -> None:
        super().v2_playbook_on_start(playbook)
        sys.stdout, sys.stderr = _Lasting(sys.stdout), _Lasting(sys.stderr)
        trust.begin()  # here, since the processes that do the tasks are forked from this one and inherit it
        # They inherit these as well; fury_follow reads them.
        os.environ["FURY_TERMINAL"] = "1" if sys.stdout.isatty() and not self._display.verbosity else "0"
        os.environ["FURY_COLUMNS"] = str(shutil.get_terminal_size().columns)
        leave_at_once = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def stop(signum: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, leave)
            signal.signal(signal.SIGTERM, leave)
            interrupt.ask()
            os.write(2, b"\nthe run is being stopped and cleaned up; once more to leave at once\n")

        def leave(signum: int, frame: FrameType | None) -> None:
            os.write(2, b"\nleaving at once: each host cleans itself when its lease is over; "
                        b"at once with: ansible-playbook teardown.yml\n")  # fmt: skip
            handler = leave_at_once[signal.Signals(signum)]
            signal.signal(signum, handler)
            if callable(handler):
                handler(signum, frame)

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)

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
        self._failed_early |= self._in_preflight
        where = "" if result.task.run_once else f"{result.host.get_name()}: "
        self._display.display(f"error: {where}{str(message).strip()}", color=C.COLOR_ERROR, stderr=True)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        self.v2_runner_on_failed(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        if self._display.verbosity:
            super().v2_runner_on_unreachable(result)
            return
        name = result.host.get_name()
        if result.task.ignore_unreachable:  # the play goes on without this host and tells of it itself
            needed = (
                self._in_gathering and "fury_agent_rescue" in result.task.when
            )  # its log alone is not asked for again
            if needed and name not in self._asked_again:
                self._asked_again.add(name)
                self._display.display(f"{name} could not be reached to fetch its results; it is asked once more")
            return
        self._failed_early |= self._in_preflight
        target = result.host.vars.get("ansible_host", name)
        self._display.display(
            f"error: {name} is unreachable: {str(result.result.get('msg', '')).strip()}; "
            f"make `ssh {target}` work, or leave it out with --limit '!{name}'",
            color=C.COLOR_UNREACHABLE,
            stderr=True,
        )
