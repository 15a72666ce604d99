"""The agent's command line. Whatever happens, a person reads sentences and the process ends with a verdict's code."""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from typing import Any, Dict, List, NoReturn, Optional, Sequence

from fury_agent import __version__
from fury_agent.config import Config, argument_parser, make_config, merge, parse_arguments, read_file
from fury_agent.verdict import FuryError, Verdict


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs the agent as the arguments say and returns its exit code."""
    words: List[str] = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path may hold what the locale cannot print
    wants_json, debug = "--json" in words, "--debug" in words
    if not words:
        argument_parser().print_usage(sys.stderr)
        return _fail(
            Verdict.BAD_INPUT, "no name, chunk_mb, duration and directory were given (--help lists all options)"
        )
    try:
        switches, options = parse_arguments(words)
        if switches.version:
            print(f"fury_agent {__version__}")
            return 0
        config = make_config(merge(read_file(switches.config) if switches.config else {}, options))
        return _run(config, check_only=switches.check, wants_json=wants_json, debug=debug)
    except FuryError as error:
        return _fail(error.verdict, error.message, wants_json=wants_json)
    except Exception as error:  # noqa: BLE001 - no traceback reaches a user who did not ask for it
        if debug:
            traceback.print_exc()
        return _fail(Verdict.INCOMPLETE, f"something unforeseen happened ({type(error).__name__}: {error})")


def _run(config: Config, *, check_only: bool, wants_json: bool, debug: bool) -> int:
    try:
        from fury_agent import agent
    except ImportError as error:
        raise FuryError(
            Verdict.PRECONDITION,
            f"{sys.executable} cannot import {error.name or error}; the agent needs psutil and prometheus_client",
        ) from error
    from fury_agent.console import Console

    if check_only:
        agent.check(config)
        print(f"{config.name} can write {config.chunk_mb} MB chunks to {config.directory}; nothing was changed")
        return 0
    console = Console()
    result = agent.run(config, console=console, debug=debug)
    if wants_json:
        console.say(json.dumps(result.summary))
    return result.verdict.exit_code


def _fail(verdict: Verdict, message: str, *, wants_json: bool = False) -> int:
    print(f"{verdict.value}: {message}", file=sys.stderr)
    if wants_json:
        summary: Dict[str, Any] = {"verdict": verdict.value, "reason": message, "written_bytes": 0, "rollovers": 0}
        print(json.dumps(summary))
    return verdict.exit_code


def _exit() -> NoReturn:
    for name in ("stdout", "stderr"):
        if (
            getattr(sys, name) is None
        ):  # started with the stream closed: nobody reads of it, the run is worth having all the same
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
    code = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        code = code or 0  # the reader is gone; the verdict stands
    os._exit(code)  # a writer stuck in the kernel and a sender in a timeout are not waited for


if __name__ == "__main__":
    _exit()
