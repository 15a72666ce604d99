"""What the agent may be told, and the sentences for what it may not."""

from __future__ import annotations

import ast
import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fury_agent import config
from fury_agent.verdict import FuryError, Verdict

GOOD = {"name": "alecto", "chunk_mb": 20, "minutes": 1, "directory": "/var/tmp"}
WHOLE = [field for field in config.FIELDS if field.kind == "whole"]


@pytest.mark.parametrize("value", [20, "20"])
def test_a_number_may_come_as_text_of_digits(value: Any) -> None:
    """Ansible's -e gives text: it counts as the number it shows."""
    assert config.check_field("chunk_mb", value) == 20


@pytest.mark.parametrize(
    "value",
    [
        *(20.5, "20.5", "0x14", "", " ", " 20", "20 ", True, False, None, 1e3, 20.0, "1e3", 10**9, -1, "-1", 0, "0"),
        *("٣", "9" * 5000, "²", "+20", "020", "1_0", [], {}, [20], b"20", float("nan"), float("inf"), "20\n", "twenty"),
    ],
)
def test_what_is_no_whole_number_in_range_is_refused_in_one_sentence(value: Any) -> None:
    """The sentence names field, range and an example, and fits on a screen."""
    with pytest.raises(FuryError) as caught:
        config.check_field("chunk_mb", value)
    assert caught.value.verdict is Verdict.BAD_INPUT
    message = caught.value.message
    assert message.startswith("chunk_mb: ")
    assert "a whole number of megabytes from 1 to 1000000" in message
    assert "--chunk-mb 20" in message
    assert "\n" not in message
    assert len(message) < 250


def test_the_sentence_names_the_value() -> None:
    """The whole sentence, as a person reads it."""
    with pytest.raises(FuryError) as caught:
        config.check_field("chunk_mb", 20.5)
    assert caught.value.message == (
        "chunk_mb: 20.5 is not allowed; a whole number of megabytes from 1 to 1000000 is (for example --chunk-mb 20)"
    )


def test_the_controller_gets_its_own_hint() -> None:
    """The same check says -e chunk_mb=20 where the input came through ansible-playbook."""
    with pytest.raises(FuryError, match=r"\(for example -e chunk_mb=20\)"):
        config.check_field("chunk_mb", "", hint=config.hint_extra_var)


@given(st.integers())
def test_every_whole_number_is_judged_by_its_range_alone(value: int) -> None:
    """Number and text of the same number are judged alike, for every field."""
    for field in WHOLE:
        allowed = field.minimum <= value <= field.maximum and value % field.multiple == 0
        for form in (value, str(value)):
            if allowed:
                assert config.check_field(field.name, form) == value
            else:
                with pytest.raises(FuryError):
                    config.check_field(field.name, form)


@given(
    st.sampled_from([field.name for field in config.FIELDS]),
    st.one_of(st.text(), st.floats(), st.none(), st.booleans(), st.lists(st.integers()), st.binary()),
)
def test_whatever_is_given_is_either_a_value_of_the_fields_type_or_a_sentence(name: str, value: Any) -> None:
    """No input raises anything but FuryError, and nothing slips through in another type."""
    checked: Any = None
    with contextlib.suppress(FuryError):
        checked = config.check_field(name, value)
    assert type(checked) in (int, str, bool, type(None))


def test_a_block_is_whole_4_kib() -> None:
    """A block that is no multiple of 4 KiB is refused with that rule in the sentence."""
    with pytest.raises(FuryError, match="multiple of 4"):
        config.check_field("block_kb", 6)


@pytest.mark.parametrize("name", ["chunk_mbs", "chunkmb", "CHUNK_MB"])
def test_a_misspelt_setting_is_an_error(name: str) -> None:
    """A misspelt name is never ignored."""
    with pytest.raises(FuryError, match="is not a setting") as caught:
        config.check_field(name, 20)
    assert "chunk_mb" in caught.value.message


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "ä", "x" * 65, "-x", "a\n", 7, None, "..", "a\0"])
def test_a_name_is_safe_in_a_path(name: Any) -> None:
    """A name can never leave the directory it is put into."""
    with pytest.raises(FuryError):
        config.check_field("name", name)


@pytest.mark.parametrize(
    "url",
    [
        *("h:1", "http://", "http://h:0", "http://h:99999", "http://u:p@h:1", "http://h:1/x"),
        *("http://h:x", "http://h :1", "http://h\n", "ftp://h:1", 7, "http://h?x"),
    ],
)
def test_a_collector_url_is_scheme_host_and_port_only(url: Any) -> None:
    """Anything else in a URL would be ignored silently, so it is refused."""
    with pytest.raises(FuryError, match="https://HOST:PORT"):
        config.check_field("collector_url", url)


def test_defaults_are_those_of_the_contract() -> None:
    """The defaults and ranges in docs/protocol.md are the ones of the table."""
    made = config.make_config(GOOD)
    assert (made.block_kb, made.keep, made.free_floor_mb, made.seconds) == (1024, 2, 500, 60)
    assert (made.heartbeat_seconds, made.sample_seconds, made.barrier_seconds, made.drain_seconds) == (5, 10, 300, 60)
    assert made.lease_s == 300 + 60 + 60 + 60
    assert (made.io, made.jobs, made.rate_mb_s, made.ramp_seconds) == ("buffered", 1, None, 0)
    assert (made.files, made.verify) == ("reuse", "none")
    assert (made.compress_percent, made.dedupe_percent, made.seed) == (0, 0, 0)
    assert made.run_id.startswith("manual-")
    text = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    for field in config.FIELDS:
        assert f"| `{field.name}` |" in text
        if field.kind == "whole":
            row = next(line for line in text.splitlines() if line.startswith(f"| `{field.name}` |"))
            assert f"{field.minimum}–{field.maximum}" in row
        for choice in field.choices:
            assert f"`{choice}`" in next(line for line in text.splitlines() if line.startswith(f"| `{field.name}` |"))


@pytest.mark.parametrize(
    "field", [field for field in config.FIELDS if field.choices], ids=lambda field: str(field.name)
)
@pytest.mark.parametrize(
    "value", ["", "Direct", "direct ", "O_DIRECT", "none,readback", True, None, 1, ["direct"], b"direct"]
)
def test_a_choice_is_one_of_its_words_exactly(field: config.Field, value: Any) -> None:
    """In their spelling; the sentence lists them, and the first is the default."""
    with pytest.raises(FuryError) as caught:
        config.check_field(field.name, value)
    assert caught.value.verdict is Verdict.BAD_INPUT
    assert f"{' or '.join(field.choices[-2:])} is (for example --{field.name} {field.example})" in caught.value.message
    assert [config.check_field(field.name, choice) for choice in field.choices] == list(field.choices)
    assert field.default == field.choices[0]
    assert field.example in field.choices


def test_the_ring_the_time_and_the_lease_count_jobs_and_ramp() -> None:
    """All rings lie on the disk at once, and the ramp comes before the seconds that count."""
    made = config.make_config({**GOOD, "jobs": 3, "keep": "5", "ramp_seconds": 7, "barrier_seconds": 10})
    assert made.ring_bytes == 3 * 5 * 20_000_768
    assert made.runtime_s == 67
    assert made.lease_s == 10 + 67 + 60 + 60
    assert config.make_config({**GOOD, "ramp_seconds": 7, "lease_seconds": 99}).lease_s == 99


def test_a_rate_may_be_none_in_a_file() -> None:
    """Null is as fast as it goes; nought is refused, and so is null for what has a default."""
    assert config.make_config({**GOOD, "rate_mb_s": None}).rate_mb_s is None
    assert config.make_config({**GOOD, "rate_mb_s": "250"}).rate_mb_s == 250
    for name, value in (("rate_mb_s", 0), ("jobs", None), ("io", None)):
        with pytest.raises(FuryError, match=f"^{name}: "):
            config.make_config({**GOOD, name: value})


def test_a_chunk_is_rounded_up_to_whole_blocks() -> None:
    """20 MB are 4883 blocks of 4 KiB."""
    assert config.make_config(GOOD).chunk_bytes == 20_000_768


@pytest.mark.parametrize("missing", ["name", "chunk_mb", "minutes", "directory"])
def test_each_required_setting_is_asked_for_by_name(missing: str) -> None:
    """What is missing is named with an example of how to give it."""
    with pytest.raises(FuryError, match=f"^{missing} is missing"):
        config.make_config({key: value for key, value in GOOD.items() if key != missing})


def test_minutes_and_seconds_exclude_each_other() -> None:
    """Both at once is a contradiction, not a preference."""
    with pytest.raises(FuryError, match="both given"):
        config.make_config({**GOOD, "seconds": 5})


def test_an_option_replaces_the_files_duration_in_either_unit() -> None:
    """--seconds 2 on top of a file with minutes is no contradiction."""
    assert config.make_config(config.merge(GOOD, {"seconds": "2"})).seconds == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("[]", "no JSON object"),
        ('{"name": "a", "name": "b"}', "given twice"),
        ("[" * 100_000, "not valid JSON"),
        ('{"chunk_mbs": 3}', "did you mean chunk_mb"),
        ("\udcff", "not valid JSON"),
    ],
)
def test_a_file_that_is_not_one_object_of_settings_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """Each way a file can be wrong has its sentence."""
    path = tmp_path / "agent.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FuryError, match=says):
        config.read_file(str(path))


def test_a_file_and_the_options_mean_the_same(tmp_path: Path) -> None:
    """Every setting of a file is a long option of the same name."""
    path = tmp_path / "agent.json"
    path.write_text(json.dumps({**GOOD, "run_id": "r", "allow_few_rollovers": True}))
    line = "alecto --chunk-mb 20 --minutes 1 --directory /var/tmp --run-id r --allow-few-rollovers"
    switches, options = config.parse_arguments(line.split())
    assert not switches.check
    assert config.make_config(options) == config.make_config(config.read_file(str(path)))
    help_text = config.argument_parser().format_help()
    for field in config.FIELDS[1:]:
        assert "--" + field.name.replace("_", "-") in help_text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("alecto --chunk-mbs 20", "did you mean --chunk-mb?"),
        ("alecto --chunk 20", "--chunk is not an option"),
        ("alecto megaera", "one argument too many"),
        ("alecto --chunk-mb", "--chunk-mb"),
    ],
)
def test_a_wrong_command_line_is_a_sentence(arguments: str, says: str) -> None:
    """Abbreviations and misspellings are refused, the nearest option is named."""
    with pytest.raises(FuryError, match=r"--help lists all options|one argument") as caught:
        config.parse_arguments(arguments.split())
    assert says in caught.value.message


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "//",
            "/proc",
            "/proc/self",
            "/sys",
            "/dev/shm",
            "/run",
            "/boot",
            "/etc",
            "/usr/share",
            "/bin",
            "/lib64",
        ),
        *("/var/../etc", "/tmp/..", "relative", "", "~", "/tmp/\0"),
    ],
)
def test_the_systems_own_directories_are_never_written_to(path: str) -> None:
    """They are refused on the controller already, by name alone."""
    with pytest.raises(FuryError):
        config.check_field("directory", path)


def test_a_link_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    """A symbolic link to /etc is /etc."""
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "good").symlink_to(tmp_path)
    with pytest.raises(FuryError, match=r"really /etc"):
        config.check_directory(str(tmp_path / "link"))
    assert config.check_directory(str(tmp_path / "good")) == os.path.realpath(tmp_path)


def test_a_directory_has_to_be_there(tmp_path: Path) -> None:
    """Neither a missing path nor a file will do."""
    (tmp_path / "file").touch()
    with pytest.raises(FuryError, match="does not exist"):
        config.check_directory(str(tmp_path / "missing"))
    with pytest.raises(FuryError, match="is not a directory"):
        config.check_directory(str(tmp_path / "file"))


def test_the_package_parses_on_python_3_9() -> None:
    """Targets have Python 3.9: no syntax of a later one, and annotations are never evaluated."""
    for path in (Path(__file__).parents[2] / "fury_agent").glob("*.py"):
        text = path.read_text()
        ast.parse(text, feature_version=(3, 9))
        assert path.name == "__init__.py" or "from __future__ import annotations" in text
