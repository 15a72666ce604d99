"""What an agent may be told: one table of fields behind the file, the options, the checks and their sentences.

The controller imports this module too, so that it judges an input exactly as the agent would.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import ipaddress
import json
import os
import re
import time
import urllib.parse
from typing import Any, Callable, Dict, List, Mapping, NoReturn, Optional, Sequence, Tuple

from fury_agent.verdict import FuryError, Verdict

BLOCK_UNIT = 4096
"""Chunks and blocks are whole multiples of this many bytes."""

_MAX_FILE_BYTES = 1_000_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_PATH_BYTES = 3900  # Linux takes 4,095; chunks are named below it
_NO_PATH = re.compile("[\0-\x1f\x7f\ud800-\udfff]")  # breaks lines and tables; surrogates stand for what is no UTF-8
_TRUE = ("true", "yes", "on")
_FALSE = ("false", "no", "off")
_SYSTEM_DIRECTORIES = (  # what a machine cannot do without
    *("/proc", "/sys", "/dev", "/run", "/boot", "/etc", "/usr", "/bin", "/sbin"),
    *("/lib", "/lib32", "/lib64", "/libx32"),
)


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting: `allowed` completes the sentence "… is", `example` is a value a person may copy."""

    name: str
    kind: str
    help: str
    allowed: str
    example: str
    default: Any = None
    required: bool = False
    minimum: int = 0
    maximum: int = 0
    multiple: int = 1
    choices: Tuple[str, ...] = ()


def _whole(
    name: str, noun: str, bounds: Tuple[int, int], example: int, help: str, **more: Any
) -> Field:  # keeps the table below readable
    low, high = bounds
    allowed = f"a whole number{noun} from {low} to {high}"
    if more.get("multiple", 1) > 1:
        allowed += f" that is a multiple of {more['multiple']}"
    return Field(name, "whole", help, allowed, str(example), minimum=low, maximum=high, **more)


def _choice(name: str, choices: Tuple[str, ...], example: str, help: str) -> Field:
    allowed = f"{', '.join(choices[:-1])} or {choices[-1]}"
    return Field(name, "choice", help, allowed, example, default=choices[0], choices=choices)


_PATH_ALLOWED = f"an absolute path (UTF-8, at most {_PATH_BYTES} bytes, no control characters)"
_NAME_ALLOWED = "1 to 64 of the characters A-Z a-z 0-9 . _ - starting with a letter or a digit"

FIELDS: Tuple[Field, ...] = (
    Field("name", "name", "what this agent is called", _NAME_ALLOWED, "alecto", required=True),
    Field("run_id", "name", "the run it belongs to (default: manual-<UTC time>)", _NAME_ALLOWED, "burn-in-7"),
    _whole("chunk_mb", " of megabytes", (1, 1_000_000), 20, "size of a chunk in megabytes (10^6 bytes)", required=True),
    _whole("minutes", " of minutes", (1, 10_080), 1, "how long to write"),
    _whole("seconds", " of seconds", (1, 604_800), 60, "how long to write, instead of --minutes"),
    Field(
        "directory",
        "directory",
        "existing directory in which the agent makes fury-<name>; it writes nowhere else",
        f"{_PATH_ALLOWED} of an existing directory outside the system's own",
        "/var/tmp",
        required=True,
    ),
    _choice(
        "io",
        ("buffered", "direct", "sync"),
        "direct",
        "how to write: through the page cache, past it (O_DIRECT), or each write durable (O_SYNC); fsync at each rollover",
    ),
    _whole("block_kb", " of KiB", (4, 65_536), 1024, "bytes of one write call, in KiB", default=1024, multiple=4),
    _whole("jobs", " of writers", (1, 64), 4, "writers at the same time, each with chunks of its own", default=1),
    _whole(
        "rate_mb_s",
        " of megabytes a second",
        (1, 1_000_000),
        100,
        "write no faster than this, all jobs together (default: as fast as it goes)",
    ),
    _whole(
        "ramp_seconds",
        " of seconds",
        (0, 86_400),
        10,
        "write for so long before the time begins, and leave it out of the figures",
        default=0,
    ),
    _whole("keep", " of chunks", (1, 1000), 2, "chunks in each job's ring: so many lie on the disk at once", default=2),
    _choice(
        "files",
        ("reuse", "new"),
        "new",
        "write over preallocated files, or unlink the old and make a new one for each chunk",
    ),
    _choice(
        "verify",
        ("none", "readback"),
        "readback",
        "read each chunk back after its fsync, past the page cache, and compare it in full",
    ),
    _whole("compress_percent", " of percent", (0, 100), 50, "how much of each 4 KiB is zeros", default=0),
    _whole("dedupe_percent", " of percent", (0, 100), 30, "how many of the blocks are repeats", default=0),
    _whole(
        "seed", "", (0, 4_294_967_295), 42, "seed of the random data; 0 makes it of run, agent and process", default=0
    ),
    _whole(
        "free_floor_mb",
        " of megabytes",
        (0, 1_000_000_000),
        500,
        "megabytes that stay free on the file system",
        default=500,
    ),
    Field(
        "allow_few_rollovers",
        "boolean",
        "write even where the time cannot hold two rollovers",
        "true or false",
        "true",
        default=False,
    ),
    Field(
        "collector_url",
        "url",
        "where events go; without it nothing is sent",
        "https://HOST:PORT (or http:// on loopback with plain_http)",
        "https://10.0.0.1:9475",
    ),
    Field(
        "credentials_directory",
        "path",
        "directory with what the run gave this agent: ca.pem, token, metrics.pem, readers",
        f"{_PATH_ALLOWED} of an existing directory",
        "/run/credentials/fury-agent-alecto.service",
    ),
    Field(
        "plain_http",
        "boolean",
        "speak to a collector on loopback without TLS and token, for debugging by hand",
        "true or false",
        "true",
        default=False,
    ),
    Field(
        "metrics_address",
        "address",
        "where /metrics listens (default: the address that reaches the collector, without one 127.0.0.1)",
        "an IP address of this host",
        "127.0.0.1",
    ),
    _whole("metrics_port", "", (0, 65_535), 0, "port of /metrics; 0 takes any free one", default=0),
    _whole("heartbeat_seconds", " of seconds", (1, 3600), 5, "seconds between two heartbeats", default=5),
    _whole("sample_seconds", " of seconds", (1, 3600), 10, "seconds between two samples of CPU and memory", default=10),
    _whole("barrier_seconds", " of seconds", (1, 86_400), 300, "how long to wait for the common start", default=300),
    _whole("drain_seconds", " of seconds", (1, 86_400), 60, "how long to deliver after the last write", default=60),
    _whole(
        "lease_seconds",
        " of seconds",
        (0, 700_000),
        0,
        "how long the agent may live; 0 is barrier + ramp + runtime + drain + 60",
        default=0,
    ),
    Field(
        "state_directory",
        "path",
        "the agent's home, for its journal and result.json",
        f"{_PATH_ALLOWED} of an existing directory",
        "/var/lib/fury/alecto",
    ),
    Field(
        "mounted_at",
        "path",
        "where its unit has mounted fury-<name> of the directory, which the agent itself may then not see",
        f"{_PATH_ALLOWED} of an existing directory",
        "/var/lib/fury/agent-alecto/chunks",
    ),
    Field(
        "event_log",
        "file",
        "file to which the epoch, number and kind of every event is appended as it is issued, for tests",
        f"{_PATH_ALLOWED} of a file",
        "/tmp/alecto.events",
    ),
)

_BY_NAME = {field.name: field for field in FIELDS}


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked configuration. Megabytes are 10^6 bytes."""

    name: str
    run_id: str
    chunk_mb: int
    seconds: int
    directory: str
    io: str = "buffered"
    block_kb: int = 1024
    jobs: int = 1
    rate_mb_s: Optional[int] = None
    ramp_seconds: int = 0
    keep: int = 2
    files: str = "reuse"
    verify: str = "none"
    compress_percent: int = 0
    dedupe_percent: int = 0
    seed: int = 0
    free_floor_mb: int = 500
    allow_few_rollovers: bool = False
    collector_url: Optional[str] = None
    credentials_directory: Optional[str] = None
    plain_http: bool = False
    metrics_address: Optional[str] = None
    metrics_port: int = 0
    heartbeat_seconds: int = 5
    sample_seconds: int = 10
    barrier_seconds: int = 300
    drain_seconds: int = 60
    lease_seconds: int = 0
    state_directory: Optional[str] = None
    mounted_at: Optional[str] = None
    event_log: Optional[str] = None

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk: `chunk_mb` rounded up to whole 4 KiB blocks."""
        return -(-self.chunk_mb * 1_000_000 // BLOCK_UNIT) * BLOCK_UNIT

    @property
    def block_bytes(self) -> int:
        """Bytes of one write call."""
        return self.block_kb * 1024

    @property
    def free_floor_bytes(self) -> int:
        """Bytes that have to stay free on the file system."""
        return self.free_floor_mb * 1_000_000

    @property
    def ring_bytes(self) -> int:
        """Bytes that lie on the disk at once, in the rings of all jobs."""
        return self.jobs * self.keep * self.chunk_bytes

    @property
    def runtime_s(self) -> int:
        """Seconds of writing, the ramp included."""
        return self.ramp_seconds + self.seconds

    @property
    def lease_s(self) -> int:
        """Seconds this agent may live, counted from its start."""
        return self.lease_seconds or self.barrier_seconds + self.runtime_s + self.drain_seconds + 60


def hint_option(field: Field) -> str:
    """How to say a field on the agent's command line: `--chunk-mb 20`."""
    option = "--" + field.name.replace("_", "-")
    if field.name == "name":
        return f"python -m fury_agent {field.example}"
    return option if field.kind == "boolean" else f"{option} {field.example}"


def hint_extra_var(field: Field) -> str:
    """How to say a field to ansible-playbook: `-e chunk_mb=20`."""
    return f"-e {field.name}={field.example}"


def hint_key(field: Field) -> str:
    """How to say a field in the configuration file: `"chunk_mb": 20`."""
    value = field.example if field.kind in ("whole", "boolean") else f'"{field.example}"'
    return f'"{field.name}": {value}'


Hint = Callable[[Field], str]


def check_field(name: str, value: Any, *, hint: Hint = hint_option) -> Any:
    """The value of the field `name` in its own type; text of digits counts as a number.

    Raises FuryError (BAD_INPUT) in a sentence with the field, the value, what is allowed and an example.
    Touches no file: `check_directory` judges a directory on the host it is on.
    """
    field = _BY_NAME.get(name)
    if field is None:
        raise bad_input(f"{_shown(name)} is not a setting of the agent{_did_you_mean(name, list(_BY_NAME))}")
    checked = _CHECKS[field.kind](field, value)
    if checked is None:
        raise bad_input(f"{name}: {_shown(value)} is not allowed; {field.allowed} is (for example {hint(field)})")
    return checked


def make_config(values: Mapping[str, Any], *, hint: Hint = hint_option) -> Config:
    """A configuration of `values`, defaults filled in. Raises FuryError (BAD_INPUT) for the first thing wrong."""
    checked: Dict[str, Any] = {}
    for name, value in values.items():
        nullable = name in _BY_NAME and not _BY_NAME[name].required and _BY_NAME[name].default is None
        checked[name] = None if value is None and nullable else check_field(name, value, hint=hint)
    given = {name for name, value in checked.items() if value is not None}
    for field in FIELDS:
        if field.required and field.name not in given:
            raise bad_input(f"{field.name} is missing; give {field.allowed} (for example {hint(field)})")
    minutes, seconds = _BY_NAME["minutes"], _BY_NAME["seconds"]
    if {"minutes", "seconds"} <= given:
        raise bad_input(
            f"minutes and seconds are both given; give one of them ({hint(minutes)} or {hint(seconds)}, for example)"
        )
    if not {"minutes", "seconds"} & given:
        raise bad_input(
            f"minutes is missing; give {minutes.allowed} (for example {hint(minutes)}), or seconds instead of it"
        )
    checked.setdefault("seconds", None)
    minutes_given = checked.pop("minutes", None)
    checked["seconds"] = checked["seconds"] or minutes_given * 60
    if checked.get("collector_url") is not None:
        _check_plain(checked["collector_url"], checked.get("plain_http", False), hint)
    if checked.get("run_id") is None:
        checked["run_id"] = time.strftime("manual-%Y%m%dT%H%M%SZ", time.gmtime())
    return Config(**checked)


def _check_plain(url: str, plain_http: bool, hint: Hint) -> None:
    """Without TLS nothing leaves this host, and only where that was asked for."""
    parts = urllib.parse.urlsplit(url)
    asked = hint(_BY_NAME["plain_http"])
    if parts.scheme == "https":
        if plain_http:
            raise bad_input(f"plain_http is given with {url}; leave it out, or give a collector_url with http://")
    elif not plain_http:
        raise bad_input(
            f"collector_url: {url} is not allowed without plain_http; https://HOST:PORT is, or for debugging on this host {asked}"
        )
    elif not is_loopback(parts.hostname or ""):
        raise bad_input(
            f"collector_url: {url} is not allowed with plain_http; only loopback is (for example http://127.0.0.1:9475), "
            "elsewhere https://HOST:PORT"
        )


def is_loopback(host: str) -> bool:
    """Whether `host` is an IP address of loopback, or its name localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_file(path: str) -> Dict[str, Any]:
    """The settings in a JSON file, unchecked but known by name. Raises FuryError (BAD_INPUT)."""
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise bad_input(f"config: {_shown_path(path)} cannot be read ({reason}); give a JSON file") from None
    if len(text) > _MAX_FILE_BYTES:
        raise bad_input(
            f"config: {_shown_path(path)} is larger than a megabyte; give a JSON file of the agent's settings"
        )
    try:
        values = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise bad_input(
            f"config: {_shown_path(path)} is not valid JSON ({error}); give one JSON object of settings"
        ) from None
    if not isinstance(values, dict):
        raise bad_input(
            f"config: {_shown_path(path)} holds no JSON object; give one, as in {{{hint_key(_BY_NAME['chunk_mb'])}}}"
        )
    for name in values:
        if name not in _BY_NAME:
            raise bad_input(
                f"{_shown(name)} in {_shown_path(path)} is not a setting{_did_you_mean(name, list(_BY_NAME))}"
            )
    return values


def check_directory(
    path: str, name: str = "directory", *, child: str = "", system_allowed: bool = False, hint: Hint = hint_option
) -> str:
    """The real path of an existing directory of this host that Fury may use: `child` in it can be made or written to.

    Symbolic links are resolved first and the real path is judged. Raises FuryError: BAD_INPUT for a path that is
    missing, no directory or the system's own; PRECONDITION for one this user cannot write to.
    """
    field = _BY_NAME[name]
    example = hint(field)
    if not _is_path(path):
        raise bad_input(f"{name}: {_shown(path)} is not allowed; {field.allowed} is (for example {example})")
    real = os.path.realpath(path)
    shown = _shown_path(path) + ("" if real == os.path.normpath(path) else f" (really {_shown_path(real)})")
    if not _is_path(real):
        raise bad_input(f"{name}: {shown} is not allowed; {field.allowed} is (for example {example})")
    if not system_allowed and is_system_directory(real):
        raise bad_input(
            f"{name}: {shown} is the system's own and Fury does not write there; "
            f"give a directory on the storage to be tested (for example {example})"
        )
    if not os.path.exists(real):
        raise bad_input(f"{name}: {shown} does not exist; make it or give another one (for example {example})")
    if not os.path.isdir(real):
        raise bad_input(f"{name}: {shown} is not a directory; give one (for example {example})")
    target = os.path.join(real, child)  # root may have made it for a user who cannot make any here
    if not os.access(target if os.path.isdir(target) else real, os.W_OK | os.X_OK):
        raise FuryError(
            Verdict.PRECONDITION,
            f"{name}: {shown} cannot be written to by user {os.geteuid()}; make it writable or give another one",
        )
    return real


def is_system_directory(path: str) -> bool:
    """Whether a normalised absolute path is `/` or lies in a directory that no stress test may write to."""
    path = "/" + os.path.normpath(path).lstrip("/")
    return path == "/" or any(path == top or path.startswith(top + "/") for top in _SYSTEM_DIRECTORIES)


def bad_input(message: str) -> FuryError:
    """The error of an input that is not allowed."""
    return FuryError(Verdict.BAD_INPUT, message)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise bad_input(f"{message} (--help lists all options)")


def argument_parser() -> argparse.ArgumentParser:
    """The agent's command line; every setting of a configuration file is a long option. Its errors are FuryErrors."""
    parser = _Parser(
        prog="python -m fury_agent",
        usage="python -m fury_agent NAME --chunk-mb MB --minutes N --directory DIR [options]\n"
        "       python -m fury_agent --config FILE [options]",
        description="Write chunks to one directory for a given time, measure it, and leave nothing behind.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", default=argparse.SUPPRESS, metavar="NAME", help=_BY_NAME["name"].help)
    for field in FIELDS:
        if field.name == "name":
            continue
        option = "--" + field.name.replace("_", "-")
        if field.kind == "boolean":
            parser.add_argument(
                option, dest=field.name, action="store_true", default=argparse.SUPPRESS, help=field.help
            )
        else:
            default = "" if field.default is None else f" (default: {field.default})"
            metavar = {
                "whole": "N",
                "choice": "|".join(field.choices),
                "directory": "DIR",
                "path": "DIR",
                "file": "FILE",
                "url": "URL",
                "address": "IP",
            }.get(field.kind, "NAME")
            parser.add_argument(
                option, dest=field.name, default=argparse.SUPPRESS, metavar=metavar, help=field.help + default
            )
    parser.add_argument("--config", metavar="FILE", help="read settings from a JSON file; options win over it")
    parser.add_argument("--check", action="store_true", help="check the settings and the directory, then stop")
    parser.add_argument("--json", action="store_true", help="print the result as JSON in the last line")
    parser.add_argument("--debug", action="store_true", help="show where an unexpected error came from")
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    return parser


def parse_arguments(arguments: Sequence[str]) -> Tuple[argparse.Namespace, Dict[str, Any]]:
    """The switches (config, check, json, debug, version) and the settings given as options. Raises FuryError."""
    parser = argument_parser()
    known, unknown = parser.parse_known_args(list(arguments))
    options = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    for word in unknown:
        if word.startswith("-"):
            option = word.split("=", 1)[0]
            raise bad_input(
                f"{_shown(option)} is not an option{_did_you_mean(option, options)} (--help lists all options)"
            )
        raise bad_input(f"{_shown(word)} is one argument too many; the agent's name is the only one without an option")
    values = {name: value for name, value in vars(known).items() if name in _BY_NAME}
    return known, values


def merge(file_values: Mapping[str, Any], option_values: Mapping[str, Any]) -> Dict[str, Any]:
    """Settings of a file overridden by options; a duration given as an option replaces the file's in either unit."""
    values = dict(file_values)
    if "minutes" in option_values or "seconds" in option_values:
        values.pop("minutes", None)
        values.pop("seconds", None)
    values.update(option_values)
    return values


def _check_whole(field: Field, value: Any) -> Optional[int]:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    if isinstance(value, str):
        if not _WHOLE.fullmatch(value):
            return None
        value = int(value)
    if not field.minimum <= value <= field.maximum or value % field.multiple:
        return None
    return int(value)


def _check_boolean(field: Field, value: Any) -> Optional[bool]:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    return None


def _check_name(field: Field, value: Any) -> Optional[str]:
    return str(value) if isinstance(value, str) and _NAME.fullmatch(value) else None


def _check_path(field: Field, value: Any) -> Optional[str]:
    return str(value) if _is_path(value) else None


def _is_path(value: Any) -> bool:
    if not isinstance(value, str) or not value.startswith("/") or _NO_PATH.search(value):
        return False
    return len(value.encode()) <= _PATH_BYTES


def _check_chunk_path(field: Field, value: Any) -> Optional[str]:
    path = _check_path(field, value)
    return None if path is None or is_system_directory(path) else path


def _check_address(field: Field, value: Any) -> Optional[str]:
    if not isinstance(value, str):
        return None
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        return None


def _check_url(field: Field, value: Any) -> Optional[str]:
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
        return None
    try:
        parts = urllib.parse.urlsplit(value)
        port = parts.port
    except ValueError:
        return None
    plain = not (parts.username or parts.password or parts.query or parts.fragment) and parts.path in ("", "/")
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain or port == 0:
        return None
    return value.rstrip("/")


def _check_choice(field: Field, value: Any) -> Optional[str]:
    return value if isinstance(value, str) and value in field.choices else None


_CHECKS: Dict[str, Callable[[Field, Any], Any]] = {
    "whole": _check_whole,
    "boolean": _check_boolean,
    "choice": _check_choice,
    "name": _check_name,
    "path": _check_path,
    "file": _check_path,
    "directory": _check_chunk_path,
    "url": _check_url,
    "address": _check_address,
}


def _without_duplicates(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    values: Dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{_shown(name)} is given twice")
        values[name] = value
    return values


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else "; " + "known are " + ", ".join(names)


def _shown(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[\w./:+-]{1,60}", value):
        return str(value)
    try:
        text = json.dumps(value, ensure_ascii=False)
        if not text.isprintable():
            text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    except RecursionError:  # what could just be read cannot always be written
        text = f"{type(value).__name__} with many levels"
    return text if len(text) <= 60 else text[:57] + "..."


def _shown_path(path: str) -> str:
    """A path for a sentence: as it is where a person can read it, else as JSON and cut."""
    if len(path) <= 200 and path.isprintable():
        return path
    text = json.dumps(path)
    return text if len(text) <= 200 else text[:197] + "..."
