#!/usr/bin/python
# Copyright (c) 2026 The Fury authors. MIT license.
"""Ansible module: what a host has that Prometheus and Grafana are set up with. It changes nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fury_monitoring
short_description: Look at a host on which roles/fury_monitoring works
description:
  - Tells in one task what the role has to know of the host; every task costs a round trip. Its action plugin does more.
options:
  do:
    description: C(look) is the module's part; see the action plugin for the others.
    choices: [look]
    required: true
    type: str
author: [The Fury authors]
"""

RETURN = r"""
problem:
  description: Why the role is not made for this host; empty where it is.
  type: str
  returned: always
set_up:
  description: Whether the role has been here before.
  type: bool
  returned: always
running:
  description: Whether its unit is there.
  type: bool
  returned: always
packages:
  description: Those of prometheus and grafana that are installed.
  type: list
  returned: always
users:
  description: Those of prometheus and grafana that are users of the host.
  type: list
  returned: always
site_prometheus:
  description: Whether the package's own Prometheus is enabled; somebody uses it then.
  type: bool
  returned: always
brought:
  description: Packages and users that the role has brought to the host.
  type: dict
  returned: always
"""

import json
import os
import pwd
import shutil
from pathlib import Path
from typing import Dict, List

from ansible.module_utils.basic import AnsibleModule

HOME = Path("/etc/fury-monitoring")
UNITS = Path("/etc/systemd/system")


def problem() -> str:
    """Why the role is not made for this host, in a sentence; empty where it is."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-query") is None:
        return "this host has no apt-get and dpkg-query: set up Prometheus by hand, as grafana/README.md tells"
    if not Path("/run/systemd/system").is_dir():
        return "systemd does not run on this host: set up Prometheus by hand, as grafana/README.md tells"
    if os.geteuid() != 0:
        return "root is needed: let Ansible become root there (ansible_become), or name another ansible_user"
    return ""


def brought() -> Dict[str, List[str]]:
    """Packages and users that the role has brought to the host."""
    try:
        return {"packages": [], "users": [], **json.loads((HOME / "installed.json").read_text())}
    except FileNotFoundError:
        return {"packages": [], "users": []}


def main() -> None:
    module = AnsibleModule({"do": {"type": "str", "choices": ["look"], "required": True}}, supports_check_mode=True)
    found = problem()
    installed = []
    if not found:
        command = ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\n", "prometheus", "grafana"]
        _, told, _ = module.run_command(command)  # it fails where one is not known, and tells of the other
        installed = [line.split()[1] for line in told.splitlines() if line.startswith("installed ")]
    module.exit_json(
        changed=False,
        problem=found,
        set_up=(HOME / "credentials").is_dir(),
        running=(UNITS / "fury-prometheus.service").exists(),
        packages=installed,
        users=[entry.pw_name for entry in pwd.getpwall() if entry.pw_name in ("prometheus", "grafana")],
        site_prometheus=os.path.lexists(UNITS / "multi-user.target.wants/prometheus.service"),
        brought=brought(),
    )


if __name__ == "__main__":
    main()
