# Copyright (c) 2026 The Fury authors. MIT license.
"""Lookup: the controller's path of a program's archive, built if need be."""

from __future__ import annotations

DOCUMENTATION = """
name: fury_archive
short_description: Path of the archive of one of Fury's programs for one kind of host
options:
  _terms:
    description: C(agent) and an architecture, or C(collector) and an architecture and a Python version, or C(collector-code).
    required: true
author: [The Fury authors]
"""

import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from ansible.errors import AnsibleError  # noqa: E402
from ansible.plugins.lookup import LookupBase  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fury_controller import tree  # noqa: E402


class LookupModule(LookupBase):
    """See DOCUMENTATION."""

    def run(self, terms: list[str], variables: Any = None, **kwargs: Any) -> list[str]:
        try:
            if terms[0] == "agent":
                return [str(tree.agent_archive(terms[1]))]
            if terms[0] == "collector":
                return [str(tree.collector_archive(terms[1], terms[2]))]
            return [str(tree.collector_code_archive())]
        except tree.TreeError as error:
            raise AnsibleError(str(error)) from error
