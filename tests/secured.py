"""The credentials of a run as the controller makes them, on the disk: for tests that start collector and agents by hand."""

from __future__ import annotations

import base64
import ssl
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from fury_controller import trust


class Secured:
    """What a run gives its collector and its agents, each in a directory of its own below ``home``.

    Two of one process have the same seed: their run ids make the difference.
    """

    def __init__(
        self, home: Path, run_id: str, agents: Sequence[str], *, addresses: Sequence[str] = ("127.0.0.1",)
    ) -> None:
        if not trust.begun():
            trust.begin()
        self.run_id, self.home = run_id, home
        self.authority = trust.authority(run_id, seconds=600)
        trust.prepare(home / "credentials", self.authority)
        self.plan = {
            "run_id": run_id,
            "authority": self.authority,
            "credentials": str(home / "credentials"),
            "agents": {name: {"addresses": ["127.0.0.1"]} for name in agents},
            "collector": {"addresses": list(addresses)},
        }
        self.collector = self._put("collector", trust.collector_files(self.plan))
        self.agents = {name: self._put(f"agent-{name}", trust.agent_files(self.plan, name)) for name in agents}
        self.context = ssl.create_default_context(cadata=self.authority)
        self.password = trust.password(home / "credentials")
        self.reader = "Basic " + base64.b64encode(f"{trust.READER}:{self.password}".encode()).decode()
        self.controller = "Bearer " + trust.control_token(run_id)

    def token(self, agent: str) -> str:
        """An agent's token."""
        return (self.agents[agent] / "token").read_text()

    def bearer(self, agent: str) -> str:
        """An agent's Authorization."""
        return f"Bearer {self.token(agent)}"

    def opener(self) -> urllib.request.OpenerDirector:
        """Opens the URLs of the collector and of the agents as a reader does."""
        made = urllib.request.build_opener(urllib.request.HTTPSHandler(context=self.context))
        made.addheaders = [("Authorization", self.reader)]
        return made

    def _put(self, name: str, files: dict[str, str]) -> Path:
        directory = self.home / name
        directory.mkdir(mode=0o700, parents=True)
        for file, text in files.items():
            (directory / file).write_text(text)
            (directory / file).chmod(0o600)
        return directory
