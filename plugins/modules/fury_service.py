#!/usr/bin/python
# Copyright (c) 2026 The Fury authors. MIT license.
"""Ansible module: one Fury service on a host, checked, started or removed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fury_service
short_description: Check, start or remove one Fury service on a host
description:
  - Brings an agent or the collector to a host (reaper first), as systemd units or as plain supervised processes, or takes
    everything of it away again. One task does it all, since every task costs every host a round trip.
  - The reaper that it arms removes the service with the same code when its lease is over and nobody else has.
options:
  state:
    description:
      - C(checked) says whether a run could start here and changes nothing.
      - C(started) installs and starts the service unless the very same one is running already.
      - C(stopped) stops it and leaves its files, for them to be fetched; the reaper stays armed.
      - C(absent) stops and removes it with everything it made.
    choices: [checked, started, stopped, absent]
    required: true
    type: str
  kind:
    description: Which of Fury's two programs.
    choices: [agent, collector]
    default: agent
    type: str
  name:
    description: The service's name; with O(state=absent) and no name, every Fury service on the host is removed.
    type: str
  base:
    description: Directory for the services' homes, default C(/var/lib/fury), without root C(~/.local/state/fury).
    type: str
  mode:
    description: How it runs. C(auto) takes systemd where it is the init and the user is root, processes elsewhere.
    choices: [auto, systemd, process]
    default: auto
    type: str
  run_id:
    description: The run it belongs to.
    type: str
  archive:
    description: Path on the controller of the program's tree as tar.gz (O(state=started)).
    type: str
  files:
    description: Files for the home, name to content.
    type: dict
    default: {}
  secrets:
    description: Files that only the service may read, name to content; the action plugin fills them in for a run.
    type: dict
    default: {}
  argv:
    description: The command in process mode.
    type: list
    elements: str
    default: []
  unit:
    description: The unit's text in systemd mode.
    type: str
    default: ""
  lease_seconds:
    description: After this time the reaper removes everything.
    type: int
    default: 3600
  directory:
    description: Below which directory the agent makes the one in which it writes.
    type: str
  need_bytes:
    description: What has to be free there (O(state=checked)).
    type: int
    default: 0
  port:
    description: A port that has to be free (O(state=checked)); 0 for none.
    type: int
    default: 0
  collector:
    description: With O(state=absent) and no name, of collectors remove only this one; others may be another run's.
    type: str
  digest:
    description: The archive's sha256; the action plugin fills it in.
    type: str
  fetch_log:
    description: Return what the program printed (O(state=absent)); the action plugin turns a path on the controller into it.
    type: bool
    default: false
  ready_file:
    description: A file below the home; the service writes it when it is ready, and until then O(state=started) waits.
    type: str
  log:
    description: Where its output goes in process mode; default a file in the home.
    type: str
author: [The Fury authors]
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Take everything of Fury off the host
  fury_service:
    state: absent
"""

RETURN = r"""
mode: {description: How the service runs or would run., type: str, returned: with a name}
home: {description: Where it lies on the host., type: str, returned: with a name}
clock: {description: The host's clock in seconds since 1970., type: float, returned: state=checked}
removed: {description: What was taken away., type: list, elements: str, returned: state=absent}
"""

import base64
import sys
import time
import zlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fury_host import HostError, Service, remove_everything

OLDEST_PYTHON = (3, 9)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "required": True, "choices": ["checked", "started", "stopped", "absent"]},
            "kind": {"type": "str", "default": "agent", "choices": ["agent", "collector"]},
            "name": {"type": "str"},
            "base": {"type": "str"},  # not path, which would replace $ in it
            "mode": {"type": "str", "default": "auto", "choices": ["auto", "systemd", "process"]},
            "run_id": {"type": "str"},
            "archive": {"type": "str"},
            "digest": {"type": "str"},
            "files": {"type": "dict", "default": {}, "no_log": False},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "argv": {"type": "list", "elements": "str", "default": []},
            "unit": {"type": "str", "default": ""},
            "lease_seconds": {"type": "int", "default": 3600},
            "directory": {"type": "str"},
            "need_bytes": {"type": "int", "default": 0},
            "port": {"type": "int", "default": 0},
            "fetch_log": {"type": "bool", "default": False},
            "ready_file": {"type": "str"},
            "collector": {"type": "str"},
            "log": {"type": "str"},
        },
        required_if=[
            ("state", "stopped", ["name"]),
            ("state", "checked", ["name", "run_id"]),
            ("state", "started", ["name", "run_id", "archive", "digest"]),
        ],
        supports_check_mode=True,
    )
    wanted = module.params
    if sys.version_info < OLDEST_PYTHON:
        module.fail_json(
            msg=f"Python {sys.version.split()[0]} at {sys.executable} is too old for the agent, 3.9 or newer is needed; "
            "name another with ansible_python_interpreter"
        )
    try:
        if wanted["state"] == "absent" and not wanted["name"]:
            removed = remove_everything(base=wanted["base"], collector=wanted["collector"], dry=module.check_mode)
            module.exit_json(changed=bool(removed), removed=removed)
        service = Service(kind=wanted["kind"], name=wanted["name"], base=wanted["base"], mode=wanted["mode"])
        about = {"mode": service.mode, "home": str(service.home)}
        if wanted["state"] == "absent":
            removed = service.remove(
                directory=wanted["directory"],
                run_id=wanted["run_id"],
                keep_log=wanted["fetch_log"],
                dry=module.check_mode,
            )
            if wanted["fetch_log"]:
                about["log"] = base64.b64encode(zlib.compress(service.last_words)).decode()
            module.exit_json(changed=bool(removed), removed=removed, **about)
        if wanted["state"] == "stopped":
            module.exit_json(changed=service.stop(dry=module.check_mode), **about)
        if wanted["state"] == "checked":
            about.update(
                service.check(
                    run_id=wanted["run_id"],
                    directory=wanted["directory"],
                    need_bytes=wanted["need_bytes"],
                    port=wanted["port"],
                )
            )
            module.exit_json(changed=False, clock=time.time(), **about)
        changed = service.start(
            run_id=wanted["run_id"],
            archive=wanted["archive"],
            digest=wanted["digest"],
            files=wanted["files"],
            secrets=wanted["secrets"],
            argv=wanted["argv"],
            unit=wanted["unit"],
            lease_s=wanted["lease_seconds"],
            directory=wanted["directory"],
            ready_file=wanted["ready_file"],
            log=wanted["log"],
            dry=module.check_mode,
        )
        module.exit_json(changed=changed, **about)
    except HostError as error:
        module.fail_json(msg=str(error))
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"{wanted['state']} of {wanted['kind']} {wanted['name']}: {error}")


if __name__ == "__main__":
    main()
