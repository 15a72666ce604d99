"""Fury's collector: records what the agents report, starts them together, and says how the run went."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from flask import Flask

from fury_collector import api, wire
from fury_collector.access import Access
from fury_collector.db import Database
from fury_collector.metrics import Metrics
from fury_collector.run import Run

__version__ = "0.1.0"


@dataclass(frozen=True)
class Config:
    """What an application is made of: a plan, an open database whose writer runs, who may use it, clocks, where words go."""

    plan: wire.Plan
    database: Database
    access: Optional[Access] = None
    barrier_seconds: float = 300.0
    wait: api.Wait = field(default_factory=api.Wait)
    tell: Callable[[str], None] = lambda line: None
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


def create_app(config: Config) -> Flask:
    """Wire a run, its database and the HTTP routes together; the run is in `app.extensions["fury_run"]`."""
    run_ref = config.database.add_run(config.plan)
    run = Run(
        config.database.read_run(config.plan.run_id),
        clock=config.clock,
        wall=config.wall,
        boot_id=_boot_id(),
        barrier_seconds=config.barrier_seconds,
        tell=config.tell,
        secure=config.access is not None,
    )
    app = Flask("fury_collector", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = wire.MAX_BODY_BYTES
    app.extensions["fury_run"] = run
    recorder = app.extensions["fury_recorder"] = api.Recorder(run, run_ref, config.database)
    api.register(
        app,
        run=run,
        recorder=recorder,
        database=config.database,
        metrics=Metrics(run),
        wait=config.wait,
        access=config.access,
    )
    return app


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no such file, no such guarantee: then only the wall clock connects two starts
        return ""
