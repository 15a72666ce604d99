"""What an agent may be told wrongly: on its command line, in its configuration file, through its environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fury_agent.__main__ import main
from tests.bad_input import check

REPO = Path(__file__).parents[2]
HERE = "{here}"  # an existing directory
GOOD: dict[str, str] = {"--chunk-mb": "20", "--minutes": "1", "--directory": HERE}
WHOLE = "a whole number"


def told(*words: str, name: str = "alecto", **options: str | None) -> list[str]:
    """A command line that is right but for ``options`` (None: left out) and ``words``."""
    given = {**GOOD, **{f"--{key.replace('_', '-')}": value for key, value in options.items()}}
    return [name, *(part for key, value in given.items() if value is not None for part in (key, value)), *words]


COMMAND_LINE: dict[str, tuple[list[str], list[str]]] = {
    "no name": (told()[1:], ["name is missing", "1 to 64"]),
    "empty name": (told(name=""), ['name: ""', "1 to 64"]),
    "name with a slash": (told(name="a/b"), ["name: a/b", "A-Z a-z 0-9"]),
    "name that climbs": (told(name="../x"), ["name: ../x", "A-Z a-z 0-9"]),
    "name with a newline": (told(name="a\nb"), ["name: ", "a\\nb", "A-Z a-z 0-9"]),
    "name with a format": (told(name="%n"), ['name: "%n"', "A-Z a-z 0-9"]),
    "name too long": (told(name="x" * 65), ["name: ", "1 to 64"]),
    "name of 4096 characters": (told(name="x" * 4096), ["name: ", "1 to 64"]),
    "two names": (told("megaera"), ["megaera", "one argument too many"]),
    "no chunk size": (told(chunk_mb=None), ["chunk_mb is missing", "1 to 1000000", "--chunk-mb 20"]),
    "no duration": (told(minutes=None), ["minutes is missing", "--minutes 1", "seconds"]),
    "two durations": (told(seconds="60"), ["minutes and seconds are both given"]),
    "no directory": (told(directory=None), ["directory is missing", "absolute path"]),
    "chunk of 0": (told(chunk_mb="0"), ["chunk_mb: 0", WHOLE, "1 to 1000000"]),
    "negative chunk": (told(chunk_mb="-1"), ["chunk_mb: -1", "1 to 1000000"]),
    "fraction": (told(chunk_mb="20.5"), ["chunk_mb: 20.5", WHOLE]),
    "hexadecimal": (told(chunk_mb="0x14"), ["chunk_mb: 0x14", WHOLE]),
    "exponent": (told(chunk_mb="1e3"), ["chunk_mb: 1e3", WHOLE]),
    "unit": (told(chunk_mb="20MB"), ["chunk_mb: 20MB", WHOLE]),
    "blank": (told(chunk_mb=" 20"), ['chunk_mb: " 20"', WHOLE]),
    "other digits": (told(chunk_mb="٢٠"), ["chunk_mb: ", WHOLE]),
    "5000 digits": (told(chunk_mb="9" * 5000), ["chunk_mb: ", "1 to 1000000"]),
    "minutes of a fraction": (told(minutes="1.5"), ["minutes: 1.5", "1 to 10080"]),
    "too many minutes": (told(minutes="10081"), ["minutes: 10081", "1 to 10080"]),
    "odd block": (told(block_kb="6"), ["block_kb: 6", "multiple of 4"]),
    "too many jobs": (told(jobs="65"), ["jobs: 65", "1 to 64"]),
    "no rate": (told(rate_mb_s="0"), ["rate_mb_s: 0", "1 to 1000000"]),
    "an unknown way to write": (told(io="mmap"), ["io: mmap", "buffered, direct or sync"]),
    "another case": (told(io="Direct"), ["io: Direct", "buffered, direct or sync"]),
    "unknown verification": (told(verify="md5"), ["verify: md5", "none or readback"]),
    "more than all": (told(compress_percent="101"), ["compress_percent: 101", "0 to 100"]),
    "seed beyond 32 bits": (told(seed="4294967296"), ["seed: 4294967296", "0 to 4294967295"]),
    "relative directory": (told(directory="here"), ["directory: here", "absolute path"]),
    "root": (told(directory="/"), ["directory: /", "absolute path"]),
    "below proc": (told(directory="/proc/self"), ["directory: /proc/self", "absolute path"]),
    "around into etc": (
        told(directory=HERE + "/../../../../../../../../etc"),
        ["directory: ", "outside the system's own"],
    ),
    "device": (told(directory="/dev/null"), ["directory: /dev/null", "absolute path"]),
    "nowhere": (told(directory=HERE + "/nowhere"), ["nowhere", "does not exist", "make it"]),
    "a variable": (told(directory=HERE + "/$HOME"), ["$HOME", "does not exist"]),
    "a newline": (told(directory=HERE + "/a\nb"), ["directory: ", "no control characters"]),
    "4096 characters": (told(directory="/" + "x" * 4096), ["directory: ", "at most 3900 bytes"]),
    "a file": (told(directory=HERE + "/file"), ["/file", "is not a directory"]),
    "a link into the system": (told(directory=HERE + "/link"), ["/link", "really /etc", "the system's own"]),
    "no URL": (told(collector_url="host:9475"), ["collector_url: host:9475", "https://HOST:PORT"]),
    "another scheme": (told(collector_url="ftp://h:1"), ["collector_url: ftp://h:1", "https://HOST:PORT"]),
    "a secret in the URL": (told(collector_url="https://u:p@h:1"), ["collector_url: ", "https://HOST:PORT"]),
    "a port beyond": (told(collector_url="https://h:65536"), ["collector_url: https://h:65536", "https://HOST:PORT"]),
    "half an IPv6 address": (told(collector_url="https://[::1"), ["collector_url: ", "https://HOST:PORT"]),
    "a path": (told(collector_url="https://h:1/x"), ["collector_url: https://h:1/x", "https://HOST:PORT"]),
    "plain HTTP unasked": (told(collector_url="http://127.0.0.1:1"), ["http://127.0.0.1:1", "plain_http", "https://"]),
    "plain HTTP elsewhere": (told("--plain-http", collector_url="http://10.0.0.1:1"), ["10.0.0.1", "only loopback is"]),
    "plain and not": (told("--plain-http", collector_url="https://h:1"), ["plain_http is given with https://h:1"]),
    "no credentials": (told(collector_url="https://h:1"), ["credentials_directory is missing", "ca.pem"]),
    "credentials nowhere": (
        told(collector_url="https://h:1", credentials_directory=HERE + "/none"),
        ["credentials_directory: ", "/none/token", "No such file", "the run made"],
    ),
    "a name for an address": (told(metrics_address="localhost"), ["metrics_address: localhost", "an IP address"]),
    "everybody's metrics": (told(metrics_address="0.0.0.0"), ["metrics_address: 0.0.0.0", "credentials_directory"]),
    "a port for metrics": (told(metrics_port="65536"), ["metrics_port: 65536", "0 to 65535"]),
    "misspelt option": (told("--chunk-mbs", "20"), ["--chunk-mbs is not an option", "did you mean --chunk-mb?"]),
    "shortened option": (told("--chunk", "20"), ["--chunk is not an option", "--chunk-mb"]),
    "option without its value": (told("--jobs"), ["--jobs", "expected one argument"]),
    "a value for a switch": (told("--plain-http=yes"), ["--plain-http", "ignored explicit argument"]),
    "no configuration": (told("--config", "/nowhere.json"), ["config: /nowhere.json", "give a JSON file"]),
    "a directory for one": (told("--config", HERE), ["config: ", "Is a directory", "give a JSON file"]),
    "NUL in its name": (told("--config", "a\0b"), ["config: ", "null byte", "give a JSON file"]),
}
FILE: dict[str, tuple[Any, list[str]]] = {
    "empty": (b"", ["config: ", "not valid JSON"]),
    "cut off": (b'{"chunk_mb": 20', ["config: ", "not valid JSON"]),
    "a comment": (b"# chunk_mb = 20", ["config: ", "not valid JSON"]),
    "not UTF-8": (b'{"name": "\xff"}', ["config: ", "not valid JSON"]),
    "UTF-16": ('{"chunk_mb": 20}'.encode("utf-16"), ["config: ", "not valid JSON"]),
    "a list": ([20, 1], ["config: ", "holds no JSON object"]),
    "too deep": (b"[" * 100_000, ["config: ", "not valid JSON"]),
    "too large": (b" " * 1_000_001, ["config: ", "larger than a megabyte"]),
    "twice": (b'{"chunk_mb": 20, "chunk_mb": 30}', ["chunk_mb is given twice"]),
    "unknown key": ({"chunk_mbs": 20}, ["chunk_mbs in ", "did you mean chunk_mb?"]),
    "key with a newline": ({"a\nb": 20}, ["not a setting"]),
    "key of 5000 characters": ({"k" * 5000: 20}, ["not a setting"]),
    "null where one is needed": ({"chunk_mb": None}, ["chunk_mb: null", WHOLE]),
    "a boolean for a number": ({"chunk_mb": True}, ["chunk_mb: true", WHOLE]),
    "a list for a number": ({"chunk_mb": [20]}, ["chunk_mb: [20]", WHOLE]),
    "a float": ({"chunk_mb": 20.0}, ["chunk_mb: 20.0", WHOLE]),
    "not a number": (b'{"chunk_mb": NaN}', ["chunk_mb: NaN", WHOLE]),
    "infinity": (b'{"chunk_mb": 1e999}', ["chunk_mb: Infinity", WHOLE]),
    "a number for a name": ({"name": 7}, ["name: 7", "1 to 64"]),
    "half a surrogate": (b'{"name": "\\ud800"}', ["name: ", "1 to 64"]),
    "a number for a switch": ({"plain_http": 1}, ["plain_http: 1", "true or false"]),
    "a word for a switch": ({"allow_few_rollovers": "perhaps"}, ["allow_few_rollovers: perhaps", "true or false"]),
    "an object for a path": ({"directory": {}}, ["directory: {}", "absolute path"]),
    "NUL in a path": ({"state_directory": "/a\0b"}, ["state_directory: ", "absolute path"]),
    "a relative log": ({"event_log": "events"}, ["event_log: events", "absolute path"]),
    "run id that climbs": ({"run_id": "../.."}, ["run_id: ../..", "1 to 64"]),
    "a lease beyond": ({"lease_seconds": 700_001}, ["lease_seconds: 700001", "0 to 700000"]),
    "a huge integer": (b'{"seed": ' + b"9" * 4000 + b"}", ["seed: ", "0 to 4294967295"]),
    "an integer too long for Python": (b'{"seed": ' + b"9" * 5000 + b"}", ["config: ", "not valid JSON"]),
}


def refused(arguments: list[str], says: list[str], directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The agent ends with BAD_INPUT's or PRECONDITION's code, one sentence, and nothing new in ``directory``."""
    before = check.contents(directory)
    code = main([*arguments, "--check"])
    out, err = capsys.readouterr()
    assert out == ""
    verdict, _, sentence = err.rstrip("\n").partition(": ")
    assert (verdict, code) in (("BAD_INPUT", 2), ("PRECONDITION", 3)), err
    check.one_sentence(sentence, says)
    assert check.contents(directory) == before


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with a file and a link into the system."""
    (tmp_path / "file").write_text("a file")
    (tmp_path / "link").symlink_to("/etc")
    return tmp_path


@pytest.mark.parametrize("case", COMMAND_LINE)
def test_a_bad_command_line_is_one_sentence(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Field, value, what is allowed, and nothing is made."""
    words, says = COMMAND_LINE[case]
    refused([word.replace(HERE, str(here)) for word in words], says, here, capsys)


@pytest.mark.parametrize("case", FILE)
def test_a_bad_configuration_file_is_one_sentence(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also what is no JSON, and what would be a setting if it were right; a file's other settings are good."""
    given, says = FILE[case]
    good = {"name": "alecto", "chunk_mb": 20, "minutes": 1, "directory": str(here)}
    path = here / "agent.json"
    whole = {**good, **given} if isinstance(given, dict) else given
    path.write_bytes(given if isinstance(given, bytes) else json.dumps(whole).encode())
    refused(["--config", str(path)], says, here, capsys)
