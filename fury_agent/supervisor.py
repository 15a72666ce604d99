"""For targets without systemd: starts the agent, again if it crashes, ends it with its lease, and cleans up after it."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import Any, NoReturn, Optional, Sequence, Tuple

from fury_agent import deadline
from fury_agent.chunks import remove_dead
from fury_agent.config import Config, make_config, read_file
from fury_agent.result import RESULT_NAME, write_result
from fury_agent.verdict import EXIT_CODES, FuryError, Verdict

_GRACE_S = 10.0
_RESTARTS = 4
_RESTART_S = 1.0
_PR_SET_PDEATHSIG = 1
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_VERDICTS = {code: verdict for verdict, code in EXIT_CODES.items()}


def supervise(config: Config, *, config_path: str, grace_s: float = _GRACE_S) -> int:
    """Runs the agent as a child for at most its lease and returns its exit code; leaves nothing of it behind.

    One that is killed is started again, up to four times, and writes on for the time that is left.
    """
    result_path = None if config.state_directory is None else os.path.join(config.state_directory, RESULT_NAME)
    if result_path is not None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(result_path)
    if config.state_directory is not None:
        deadline.forget(config.state_directory)
    ends_s = time.monotonic() + config.lease_s
    # Blocked rather than handled: sigtimedwait then takes them one by one, and none can come at a bad moment.
    waited = {signal.SIGCHLD, *_FORWARDED}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    restarts = 0
    while True:
        child = _start(config_path, before)
        lease_over, stopped = _wait(child, waited, ends_s, grace_s)
        code = child.returncode
        if code >= 0 or lease_over or stopped or restarts == _RESTARTS:
            break
        if result_path is None or os.path.exists(result_path):
            break
        restarts += 1
        killer = signal.Signals(-code).name
        print(
            f"{config.name}: the agent was killed by {killer} and is started again ({restarts} of {_RESTARTS})",
            flush=True,
        )
        if signal.sigtimedwait(_FORWARDED, min(_RESTART_S, max(0.0, ends_s - time.monotonic()))) is not None:
            break
    verdict = Verdict.INCOMPLETE if code < 0 else _VERDICTS.get(code, Verdict.INCOMPLETE)
    reason = f"the lease of {config.lease_s} s was over" if lease_over else f"the agent ended with code {code}"
    if code < 0:
        killer = signal.Signals(-code).name
        reason = f"{reason}, killed by {killer}" if lease_over else f"the agent was killed by {killer}"
    left = remove_dead(os.path.realpath(config.directory), agent=config.name)
    if left is not None:
        print(f"{config.name}: {left}", flush=True)
        if verdict is Verdict.PASS:
            verdict, reason = Verdict.CLEANUP_UNCONFIRMED, left
    if lease_over and code >= 0:
        print(f"{config.name} was stopped because {reason}", flush=True)
    elif code < 0:
        print(f"{verdict.value}: {config.name}: {reason}", flush=True)
    if result_path is not None and config.state_directory is not None and not os.path.exists(result_path):
        result = {
            "name": config.name,
            "run_id": config.run_id,
            "exit_code": code,
            "verdict": verdict.value,
            "reason": reason,
            "cleanup": "confirmed" if left is None else "unconfirmed",
        }
        try:
            write_result(config.state_directory, result)
        except OSError as error:
            print(f"{config.name}: {result_path} could not be written ({error.strerror})", flush=True)
    return verdict.exit_code


def _start(config_path: str, signal_mask: Any) -> subprocess.Popen[bytes]:
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)
    package_parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # whatever ends the supervisor stops the agent too
        if os.getppid() != parent:
            os._exit(EXIT_CODES[Verdict.INCOMPLETE])  # it died before the line above

    return subprocess.Popen(
        [sys.executable, "-m", "fury_agent", "--config", config_path],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # a Ctrl-C reaches it once, through us
        preexec_fn=prepare,  # safe: this process has no other thread
    )


def _wait(child: subprocess.Popen[bytes], waited: Any, ends_s: float, grace_s: float) -> Tuple[bool, bool]:
    """Waits for the child's end, passing signals on; whether its lease ran out first, and whether a signal asked for it."""
    lease_over = stopped = False
    while child.poll() is None:
        left_s = ends_s - time.monotonic()
        if left_s <= 0:
            child.send_signal(signal.SIGKILL if lease_over else signal.SIGTERM)
            lease_over, ends_s = True, time.monotonic() + grace_s
            continue
        received = signal.sigtimedwait(waited, left_s)
        if received is not None and received.si_signo != signal.SIGCHLD:
            stopped = True
            child.send_signal(received.si_signo)
    return lease_over, stopped or bool(signal.sigpending() & set(_FORWARDED))


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Supervises the agent of a configuration file and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m fury_agent.supervisor", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="the agent's configuration")
    parser.add_argument(
        "--grace-seconds", type=float, default=_GRACE_S, metavar="N", help="from SIGTERM to SIGKILL (default: 10)"
    )
    options = parser.parse_args(arguments)
    path = os.path.abspath(options.config)
    try:
        config = make_config(read_file(path))
        return supervise(config, config_path=path, grace_s=options.grace_seconds)
    except FuryError as error:
        print(f"{error.verdict.value}: {error.message}", file=sys.stderr)
        return error.verdict.exit_code
    except OSError as error:
        print(f"{Verdict.PRECONDITION.value}: the agent cannot be started ({error})", file=sys.stderr)
        return Verdict.PRECONDITION.exit_code


def _exit() -> NoReturn:
    sys.exit(main())


if __name__ == "__main__":
    _exit()
