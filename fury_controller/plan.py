"""Judges everything a run was asked for, before any host is touched, and makes the run's plan of it."""

from __future__ import annotations

import datetime
import difflib
import ipaddress
import reprlib
import secrets
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fury_agent.config import BLOCK_UNIT, FIELDS, check_field, hint_extra_var, make_config
from fury_agent.verdict import FuryError
from fury_collector import slo
from fury_collector.errors import BadInput as BadObjective
from fury_controller import grafana

# What the run itself tells each agent.
RUNS_OWN = (
    "name", "run_id", "collector_url", "credentials_directory", "plain_http", "barrier_seconds", "lease_seconds",
    "state_directory", "mounted_at",
)  # fmt: skip
# What an agent may be told through the inventory or extra-vars, by the agent's own names (docs/protocol.md).
AGENT_PARAMETERS = tuple(field.name for field in FIELDS if field.name not in RUNS_OWN)
# Those that say what is written and how, for the results.
LOAD_PARAMETERS = (
    "chunk_mb", "seconds", "directory", "io", "block_kb", "jobs", "rate_mb_s", "ramp_seconds", "keep", "files", "verify",
    "compress_percent", "dedupe_percent", "seed", "free_floor_mb",
)  # fmt: skip
# What the run as a whole may be told, with the default.
RUN_PARAMETERS: dict[str, Any] = {
    "fury_barrier_seconds": 300,  # how long the armed wait for the last
    "fury_base": "",  # where homes lie on hosts
    "fury_collector_address": "",  # at which address the hosts reach the collector; found out
    "fury_collector_port": 9475,
    "fury_credentials": "",  # where the read password and the authorities' certificates lie; credentials/ beside run.yml
    "fury_grafana_url": "",  # a Grafana with the dashboards of grafana/, for a link at the end
    "fury_mode": "auto",
    "fury_results": "",  # results/ beside run.yml
    "fury_slack_seconds": 300,  # how long arming, gathering and teardown may take on top before the reapers come
    "fury_slow_percent": 20,  # how far below the fleet's median an agent's rate is when it is named as slow
    "slo": "",  # thresholds on the results: an object, or a file that holds one
}
MODES = ("auto", "systemd", "process")
DEFAULT_DIRECTORY = "/var/tmp"
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 120
CONTROLLERS_OWN = ("127.0.0.1", "localhost", "::1")


class BadInput(Exception):
    """Something that was asked for is not possible; ``problems`` are sentences with field, value, what is allowed, what to do."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def make_plan(
    *,
    agents: Sequence[str],
    hostvars: Mapping[str, Mapping[str, Any]],
    collectors: Sequence[str],
    extra_vars: Mapping[str, Any],
    repo: Path,
) -> dict[str, Any]:
    """The plan of a run over ``agents`` (inventory names).

    hostvars: each host's variables as Ansible sees them (extra-vars included); collectors: hosts of group fury_collector;
    extra_vars: those given with ``-e``, to find misspelt ones. Raises BadInput with everything that is wrong.
    """
    problems = _misspelt_extra_vars(extra_vars)
    if not agents:
        raise BadInput([*problems, "inventory: the group fury_agents has no hosts; name at least one agent in it"])
    if len(collectors) > 1:
        problems.append(
            f"inventory: the group fury_collector has {len(collectors)} hosts ({', '.join(collectors)}), one is allowed; keep one"
        )
    run = _run_parameters(hostvars[agents[0]], problems)
    for parameter in RUN_PARAMETERS:
        values = {str(hostvars[name].get(parameter)) for name in agents}
        if len(values) > 1:
            given = ", ".join(
                one if one.isprintable() and len(one) <= 200 else _shown(one) for one in sorted(values)[:5]
            )
            problems.append(
                f"{parameter}: {given} are given for different agents, but it holds for the whole run; "
                "give it once, in [all:vars] or with -e"
            )
    collector = _collector(agents, hostvars, collectors, run, problems)
    run_id = f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    planned: dict[str, dict[str, Any]] = {}
    for name in agents:
        agent = _agent(name, hostvars[name], extra_vars, run_id=run_id, run=run, collector=collector, problems=problems)
        if agent is not None:
            planned[name] = agent
    problems += _collisions(planned)
    objectives = _objectives(run["slo"], planned, problems)
    if problems:
        raise BadInput(_grouped(problems))
    _add_up_space(planned)
    longest = max(agent["runtime_s"] for agent in planned.values())
    drain = max(agent["config"]["drain_seconds"] for agent in planned.values())
    results = Path(run["fury_results"] or repo / "results")
    return {
        "run_id": run_id,
        "credentials": str(run["fury_credentials"] or repo / "credentials"),
        "agents": planned,
        "collector": collector,
        "grafana_url": str(run["fury_grafana_url"]),
        "mode": run["fury_mode"],
        "base": run["fury_base"],
        "barrier_seconds": run["fury_barrier_seconds"],
        "running_seconds": longest + drain + 15,
        "lease_seconds": run["fury_barrier_seconds"] + longest + drain + run["fury_slack_seconds"],
        "results": str(results / run_id),
        "collector_plan": {
            "run_id": run_id,
            "created_at": datetime.datetime.now(datetime.timezone.utc)
            .isoformat(timespec="seconds")
            .replace("+00:00", "Z"),
            "parameters": _common_parameters(planned),
            "agents": [
                {"name": name, "host": agent["host"], "seconds": agent["runtime_s"]}
                | {key: agent["config"][key] for key in ("chunk_mb", "directory", "drain_seconds", "ramp_seconds")}
                for name, agent in planned.items()
            ],
            "slow_percent": run["fury_slow_percent"],
            "slo": objectives,
        },
        "summary": _summary(run_id, planned),
    }


def _objectives(value: Any, planned: Mapping[str, Mapping[str, Any]], problems: list[str]) -> dict[str, Any]:
    """The thresholds as plain JSON: given as an object, as its text, or as a file of JSON or YAML."""
    if value in ("", None):
        return {}
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        try:
            value = Path(value).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            shown = value if len(value) <= 200 and value.isprintable() else _shown(value)
            problems.append(f"slo: {shown} cannot be read ({reason}); give an object or a file that holds one")
            return {}
    if isinstance(value, str):
        try:
            value = yaml.safe_load(value)
        except (yaml.YAMLError, RecursionError) as error:
            reason = " ".join(str(error).split())
            problems.append(
                f"slo: {reason if len(reason) <= 400 else reason[:397] + '...'}; give one object of JSON or YAML"
            )
            return {}
        if isinstance(value, dict) and set(value) == {"slo"}:
            value = value["slo"]
    try:
        found = slo.parse(value)
    except BadObjective as error:
        problems.append(error.message)
        return {}
    verified = [name for name, agent in planned.items() if agent["config"]["verify"] == "readback"]
    for objective in found:
        if objective.metric.startswith("read_") and len(verified) < (len(planned) if objective.each else 1):
            problems.append(f"slo: {objective.text} needs something to be read; give -e verify=readback too")
    return {
        str(name): [str(one) for one in each] if isinstance(each, list) else str(each) for name, each in value.items()
    }


def _grouped(problems: Sequence[str]) -> list[str]:
    """Each problem once; what is wrong with many agents in the same way is one sentence that names the first of them."""
    hosts: dict[str, list[str]] = {}
    for problem in problems:
        sentence, _, host = problem.partition(" (inventory, ")
        hosts.setdefault(sentence, []).extend([host.rstrip(")")] if host else [])
    said = []
    for sentence, of in hosts.items():
        many = f" and {len(of) - 1} more" if len(of) > 1 else ""
        said.append(f"{sentence} (inventory, {of[0]}{many})" if of else sentence)
    return said


def _add_up_space(planned: Mapping[str, dict[str, Any]]) -> None:
    """Agents that share a directory of a host need room for all their rings; each is asked to find room for all of them."""
    rings: dict[tuple[str, str], int] = {}
    for agent in planned.values():
        where = (agent["host"], agent["config"]["directory"])
        rings[where] = rings.get(where, 0) + agent["ring_bytes"]
    for agent in planned.values():
        floor = agent["config"]["free_floor_mb"] * 10**6
        agent["need_bytes"] = rings[agent["host"], agent["config"]["directory"]] + floor


def _misspelt_extra_vars(extra_vars: Mapping[str, Any]) -> list[str]:
    """A sentence for each extra-var that Fury does not know: a typo there would silently run something else."""
    known = [*AGENT_PARAMETERS, *RUN_PARAMETERS]
    return [
        f"extra-vars: {_shown(extra_vars[name])} has no name; give -e NAME=VALUE, or JSON where a value has blanks"
        if name == "_raw_params"  # what Ansible calls the words that are not name=value
        else f"{name if name.isidentifier() else _shown(name)} is not a parameter of Fury{_did_you_mean(name, known)}"
        for name in extra_vars
        if name not in known and not name.startswith("ansible_")
    ]


def _misspelt_host_vars(host: str, variables: Mapping[str, Any], extra_vars: Mapping[str, Any]) -> list[str]:
    """A sentence for each inventory variable that looks like one of ours with a typo; inventories hold much else."""
    known = [*AGENT_PARAMETERS, *RUN_PARAMETERS]
    telling = [name for name in known if len(name) > 5]  # speed and file are somebody else's, not seed and files
    problems = []
    for name in variables:
        if name in known or name in extra_vars or name.startswith(("ansible_", "__")):
            continue
        if difflib.get_close_matches(name, telling, n=1, cutoff=0.85) or (
            name.startswith("fury_") and not _role_variable(name)
        ):
            problems.append(f"{name} (inventory, {host}) is not a parameter of Fury{_did_you_mean(name, known)}")
    return problems


def _role_variable(name: str) -> bool:
    return name.startswith(("fury_agent_", "fury_collector_", "fury_monitoring_", "fury_plan"))


def _shown(value: Any) -> str:
    """The value for a sentence: as Python has it, cut to what a person reads."""
    text = _SHORT.repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _run_parameters(variables: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    run = {name: variables.get(name, default) for name, default in RUN_PARAMETERS.items()}
    for name, agents_name, highest, allowed in (
        ("fury_barrier_seconds", "barrier_seconds", 86_400, "a whole number of seconds from 1 to 86400"),
        ("fury_slack_seconds", "barrier_seconds", 86_400, "a whole number of seconds from 1 to 86400"),
        ("fury_collector_port", "metrics_port", 65_535, "a port from 1 to 65535"),
        ("fury_slow_percent", "compress_percent", 99, "a whole number of percent from 1 to 99"),
    ):
        try:
            run[name] = check_field(agents_name, run[name])
            possible = 0 < run[name] <= highest
        except FuryError:
            possible = False
        if not possible:
            default = RUN_PARAMETERS[name]
            problems.append(
                f"{name}: {_shown(run[name])} is not allowed; {allowed} is (for example -e {name}={default})"
            )
            run[name] = default
    if run["fury_mode"] not in MODES:
        problems.append(
            f"fury_mode: {_shown(run['fury_mode'])} is not allowed; {', '.join(MODES)} are (for example -e fury_mode=auto)"
        )
    for name in ("fury_base", "fury_credentials", "fury_results"):
        if run[name] and not str(run[name]).startswith("/"):
            problems.append(
                f"{name}: {_shown(run[name])} is not allowed; an absolute path is (for example -e {name}=/srv/fury)"
            )
    if run["fury_grafana_url"] and not grafana.is_address(run["fury_grafana_url"]):
        problems.append(
            f"fury_grafana_url: {_shown(run['fury_grafana_url'])} is not allowed; http or https, a host, a port and a path are, "
            "without user and query (for example -e fury_grafana_url=http://10.0.0.1:3000)"
        )
    address = run["fury_collector_address"]
    if address and not _is_address(str(address)):
        problems.append(
            f"fury_collector_address: {_shown(address)} is not allowed; an IP address or a host name is, without port or scheme "
            "(for example -e fury_collector_address=10.0.0.1)"
        )
        run["fury_collector_address"] = ""
    elif address and not _resolves(str(address)):
        problems.append(
            f"fury_collector_address: {address} can't be resolved on this controller; name one that it and all hosts know"
        )
    return run


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        labels = text.rstrip(".").split(".")
        return len(text) <= 253 and all(
            0 < len(label) <= 63 and label.isascii() and label.replace("-", "").isalnum() for label in labels
        )
    return True


def _resolves(address: str) -> bool:
    try:
        socket.getaddrinfo(address, None)
    except OSError:
        return False
    return True


def _is_own(address: str) -> bool:
    """True for an IP address of this machine."""
    try:
        with socket.create_server((address, 0)):
            return True
    except OSError:
        return False


def is_local(variables: Mapping[str, Any]) -> bool:
    """True where Ansible reaches the host without a network: it is the controller itself."""
    return variables.get("ansible_connection") == "local"


def _host(name: str, variables: Mapping[str, Any]) -> str:
    """The machine an agent runs on, as a person would call it."""
    return socket.gethostname() if is_local(variables) else str(variables.get("ansible_host") or name)


def _collector(
    agents: Sequence[str],
    hostvars: Mapping[str, Mapping[str, Any]],
    collectors: Sequence[str],
    run: Mapping[str, Any],
    problems: list[str],
) -> dict[str, Any]:
    """Where the collector runs, where it listens, and at which URL each agent and the controller reach it."""
    host = collectors[0] if collectors else "localhost"
    on_controller = not collectors or is_local(hostvars[host]) or host in CONTROLLERS_OWN
    port = run["fury_collector_port"]
    asked = str(run["fury_collector_address"])
    addresses: dict[str, str] = {}
    for name in agents:
        if asked:
            addresses[name] = asked
        elif on_controller and is_local(hostvars[name]):
            addresses[name] = "127.0.0.1"
        elif on_controller:
            addresses[name] = _own_address_towards(str(hostvars[name].get("ansible_host") or name), name, problems)
        else:
            addresses[name] = str(hostvars[host].get("ansible_host") or host)
    found = sorted(set(addresses.values()))
    listen = found[0] if on_controller and len(found) == 1 and _is_own(found[0]) else "0.0.0.0"
    own = listen if on_controller and listen != "0.0.0.0" else "127.0.0.1" if on_controller else found[0]
    return {
        "host": host,
        "on_controller": on_controller,
        "listen": listen,
        "port": port,
        "url": _url(own, port),
        "urls": {name: _url(address, port) for name, address in addresses.items()},
        # What its certificate is for: wherever the hosts, the controller and people on its own machine find it.
        "addresses": _certifiable([*found, own, *_names_of(host, {} if on_controller else hostvars[host])]),
    }


def _url(address: str, port: int) -> str:
    return f"https://[{address}]:{port}" if ":" in address else f"https://{address}:{port}"


def _names_of(name: str, variables: Mapping[str, Any]) -> list[str]:
    """Where a host may be found: as Ansible names it, on itself, and the controller's own machine by its host name."""
    local = not variables or is_local(variables)
    return [socket.gethostname() if local else str(variables.get("ansible_host") or name), "127.0.0.1", "localhost"]


def _certifiable(addresses: Sequence[str]) -> list[str]:
    return [one for one in dict.fromkeys(addresses) if _is_address(one)]


def _own_address_towards(target: str, name: str, problems: list[str]) -> str:
    """This machine's address on the way to ``target``: the kernel is asked for the route, nothing is sent."""
    try:
        family, _, _, _, where = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    except OSError as error:
        # The name may be an alias of ~/.ssh/config that only ssh resolves.
        problems.append(
            f"fury_collector_address: the address at which {name} ({target}) reaches this controller can't be found out "
            f"({error.strerror or error}); name it, for example -e fury_collector_address=10.0.0.1"
        )
        return "127.0.0.1"


def _agent(
    name: str,
    variables: Mapping[str, Any],
    extra_vars: Mapping[str, Any],
    *,
    run_id: str,
    run: Mapping[str, Any],
    collector: Mapping[str, Any],
    problems: list[str],
) -> dict[str, Any] | None:
    problems += _misspelt_host_vars(name, variables, extra_vars)
    values = {key: variables[key] for key in AGENT_PARAMETERS if variables.get(key) is not None}
    for given, other in (("seconds", "minutes"), ("minutes", "seconds")):
        if given in extra_vars and other not in extra_vars:
            values.pop(other, None)  # -e wins over the inventory, whichever unit that has
    values.setdefault("directory", DEFAULT_DIRECTORY)
    wrong = len(problems)
    for key, value in [("name", name), *values.items()]:
        try:
            check_field(key, value, hint=hint_extra_var)
        except FuryError as error:
            sentence = str(error).partition(" (for example")[0] if key == "name" else str(error)
            problems.append(sentence if key in extra_vars else f"{sentence} (inventory, {name})")
    if len(problems) > wrong:
        return None
    try:
        config = make_config(
            {
                **values,
                "name": name,
                "run_id": run_id,
                "collector_url": collector["urls"][name],
                "barrier_seconds": run["fury_barrier_seconds"],
            },
            hint=hint_extra_var,
        )
    except FuryError as error:
        problems.append(f"{error} (inventory, {name})")
        return None
    defaults = {field.name: getattr(config, field.name) for field in FIELDS if hasattr(config, field.name)}
    return {
        "host": _host(name, variables),
        "addresses": _certifiable(_names_of(name, variables)),
        "config": {key: value for key, value in defaults.items() if value is not None},
        "runtime_s": config.runtime_s,
        "ring_bytes": config.ring_bytes + BLOCK_UNIT,
    }


def _collisions(planned: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Agents of one machine that would be in each other's way."""
    problems = []
    taken: dict[tuple[str, int], str] = {}
    for name, agent in planned.items():
        port = agent["config"]["metrics_port"]
        if port and (other := taken.setdefault((agent["host"], port), name)) != name:
            problems.append(
                f"metrics_port: {port} is asked for by {other} and {name}, both on {agent['host']}; "
                "give each a port of its own, or 0 for any free one"
            )
    return problems


def _common_parameters(planned: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The parameters as asked for: one value where all agents agree, the sorted distinct values where they don't."""
    common: dict[str, Any] = {}
    for key in LOAD_PARAMETERS:
        distinct = {agent["config"].get(key) for agent in planned.values()}
        values = sorted(distinct, key=lambda value: (value is not None, value))
        common[key] = values[0] if len(values) == 1 else values
    seconds = common["seconds"]
    if isinstance(seconds, int) and seconds % 60 == 0:
        common["minutes"] = seconds // 60
    return common


def _summary(run_id: str, planned: Mapping[str, Mapping[str, Any]]) -> str:
    """What is going to happen, in one sentence."""
    hosts = len({agent["host"] for agent in planned.values()})
    chunks = sorted({agent["config"]["chunk_mb"] for agent in planned.values()})
    seconds = sorted({agent["config"]["seconds"] for agent in planned.values()})
    ramps = sorted({agent["config"]["ramp_seconds"] for agent in planned.values()})
    count = len(planned)
    return (
        f"run {run_id}: {count} agent{'s' * (count != 1)} on {hosts} host{'s' * (hosts != 1)}, "
        f"{_range(chunks)} MB chunks, {_duration(seconds)}{f' after a ramp of {_duration(ramps)}' * any(ramps)}"
    )


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]}–{values[-1]}"


def _duration(seconds: Sequence[int]) -> str:
    if all(s % 60 == 0 for s in seconds):
        minutes = [s // 60 for s in seconds]
        return f"{_range(minutes)} minute{'s' * (minutes[-1] != 1)}"
    return f"{_range(seconds)} seconds"
