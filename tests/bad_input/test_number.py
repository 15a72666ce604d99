"""How many bad inputs are tried, by the way in which they come in."""

from __future__ import annotations

from collections.abc import Sized

from tests.bad_input import test_agent, test_certificates, test_collector_command, test_http, test_plan, test_playbook

TABLES: dict[str, list[Sized]] = {
    "command line of the agent": [test_agent.COMMAND_LINE],
    "configuration file": [test_agent.FILE],
    "extra-vars": [test_plan.EXTRA_VARS, test_playbook.EXTRA_VARS, test_playbook.TOGETHER, test_playbook.ANSIBLES_OWN],
    "inventory": [test_plan.INVENTORIES, test_playbook.INVENTORIES],
    "environment": [test_playbook.ENVIRONMENT],
    "objectives": [test_plan.SLO],
    "command line of the collector": [test_collector_command.COMMANDS],
    "database URL": [test_collector_command.URLS],
    "plan of the collector": [test_collector_command.PLANS],
    "HTTP": [test_http.ALL],
    "certificates": [test_certificates.SHOWN],
    "credentials": [test_certificates.OWN, test_collector_command.CREDENTIALS],
}


def test_every_way_in_is_tried() -> None:
    """At least 120 altogether, and some of each."""
    tried = {way: sum(len(table) for table in tables) for way, tables in TABLES.items()}
    print(f"\n{sum(tried.values())} bad inputs: {', '.join(f'{way} {number}' for way, number in tried.items())}")
    assert sum(tried.values()) >= 120
    assert all(number >= 4 for number in tried.values())
