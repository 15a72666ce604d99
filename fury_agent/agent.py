"""An agent's life: arm, wait for the common start, write, deliver, report; and clean up whatever happens."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import math
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any, Deque, Dict, List, Mapping, Optional, Tuple, Union

import psutil

from fury_agent import __version__, credentials, deadline
from fury_agent.channel import NOT_BELIEVED, Channel, Exchange, Refused, Sender, Trouble, own_address
from fury_agent.chunks import ChunkDirectory
from fury_agent.config import Config, bad_input, check_directory, is_loopback
from fury_agent.console import (
    Console,
    RolloverFigures,
    RolloverLines,
    count_text,
    duration_text,
    latency_row,
    rate_text,
    size_text,
)
from fury_agent.data import POOL_BYTES
from fury_agent.events import Event, EventLog, Events
from fury_agent.histogram import Histogram
from fury_agent.honesty import Honesty, Watch, notes
from fury_agent.journal import JOURNAL_NAME, Keeper, forget_epochs, read_epochs, remember_epoch
from fury_agent.machine import facts as machine_facts
from fury_agent.metrics import HostSampler, MetricsServer, Reading, make_registry
from fury_agent.result import write_result
from fury_agent.verdict import DiskError, FuryError, StorageError, Verdict
from fury_agent.writer import Progress, Ring, Rollover, Work, Writer

_TICK_S = 0.5
_READY_APART_S = 0.5
_READY_APART_MOST_S = 10.0
_EXCHANGES_KEPT = 60
_EXCHANGES_WANTED = 3
_PREDECESSOR_S = 60.0  # the collector calls a silent process lost after 40 s
_CONFLICT = 409
_ANOTHER_LIVES = re.compile(r"\banother\b.*\b(live|alive|process|epoch)\b")
_TEXT_MOST = 4000  # of a message or reason, by the collector's table
_ASK_S = 0.1
_UNREACHABLE_S = 1.0
_SIGNALLED_S = 5.0  # systemd and the supervisor kill what lives 10 s and more after their SIGTERM
_JOURNAL_OPEN_S = 30.0  # a full one is read once from end to end
_JOURNAL_CLOSE_S = 5.0
_QUIET_LINE_S = 10.0
_SECOND_SIGNAL_S = 2.0
_SWITCH_INTERVAL_S = 0.0005
_ROLLOVERS_NEEDED = 2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Result:
    """How it ended: `summary` is the agent's object of summary.json."""

    verdict: Verdict
    reason: str
    summary: Dict[str, Any]


def check(config: Config) -> None:
    """Raises FuryError for whatever would keep this agent from starting on this host; changes nothing."""
    chunks = _chunk_directory(config)
    if config.state_directory is not None:
        check_directory(config.state_directory, "state_directory", system_allowed=True)
    badge(config)
    guard(config)
    chunks.inspect()
    chunks.require_space(needed=config.ring_bytes, floor=config.free_floor_bytes)


def _chunk_directory(config: Config) -> ChunkDirectory:
    """Raises FuryError where its place cannot be used; whoever mounted it for us has judged that, and we may not see it."""
    base = config.directory
    if config.mounted_at is None:
        base = check_directory(base, child=f"fury-{config.name}")
    return ChunkDirectory(base, agent=config.name, run_id=config.run_id, mounted_at=config.mounted_at)


def badge(config: Config) -> Optional[credentials.Badge]:
    """How the agent and its collector know each other; None without one, and on loopback where plain_http is asked for."""
    if config.collector_url is None or config.plain_http:
        return None
    if config.credentials_directory is None:
        raise bad_input(
            "credentials_directory is missing; give the directory with the ca.pem and the token that the run made for this "
            "agent (for a collector on this host that was started with --plain-http give plain_http instead)"
        )
    return credentials.read_badge(config.credentials_directory)


def guard(config: Config) -> Optional[credentials.Guard]:
    """Who may read /metrics, and how; None on loopback, where everybody may."""
    if config.credentials_directory is not None:
        return credentials.read_guard(config.credentials_directory)
    if config.metrics_address is not None and not is_loopback(config.metrics_address):
        raise bad_input(
            f"metrics_address: {config.metrics_address} is not allowed without credentials_directory; "
            "an address of loopback is (for example 127.0.0.1)"
        )
    return None


def run(config: Config, *, console: Console, debug: bool = False) -> Result:
    """Runs one agent to its end and says how it ended. Raises nothing for what a run can meet."""
    return _Agent(config, console=console, debug=debug).run()


class _Agent:
    def __init__(self, config: Config, *, console: Console, debug: bool) -> None:
        self.config = config
        self.console = console
        self.debug = debug
        self.host = socket.gethostname()
        self.epoch = os.urandom(8).hex()
        self.inbox: queue.SimpleQueue[None] = queue.SimpleQueue()  # its put is safe in a signal handler
        self.event_log = None if config.event_log is None else EventLog(config.event_log)
        self.events = Events(
            keep=config.collector_url is not None,
            epoch=self.epoch,
            on_full=self._stop,
            log=None if self.event_log is None else self.event_log.write,
        )
        self.keeper: Optional[Keeper] = None
        self.earlier: List[str] = []
        self.notices: Deque[str] = collections.deque()
        self.signalled = False
        self.unknown_bytes = 0
        self.sampler = HostSampler()
        self.chunks: Optional[ChunkDirectory] = None
        self.writer: Optional[Writer] = None
        self.metrics: Optional[MetricsServer] = None
        self.channel: Optional[Channel] = None
        self.sender: Optional[Sender] = None
        self.facts: Mapping[str, Any] = {}
        self.calibrated = 0.0
        self.resumed: Optional[deadline.Deadline] = None
        self.processes = 1
        self.best_exchange: Optional[Exchange] = None
        self.fresh_rollovers: Deque[Rollover] = collections.deque()
        self.rollovers_told = 0
        self.writer_ended = False
        self.writer_stuck = False
        self.stop_reason: Optional[str] = None
        self.stopped_s = 0.0
        self.hurry = False
        self.errors = 0
        self.collector_unreachable = False
        self.cleanup_left: Optional[str] = None
        self.watch: Optional[Watch] = None
        self.honesty = Honesty()
        self.cpu_before_s: Optional[float] = None
        self.cpu_s = 0.0
        self.sampled_write = Histogram()
        self.sampled_fsync = Histogram()
        self.sampled_read = Histogram()
        self.verdict = Verdict.INCOMPLETE
        self.reason = "it did not come to its end"

    def run(self) -> Result:
        with self._signals_caught():
            try:
                try:
                    self._arm()
                    start_s = self._await_start()
                    self._write(start_s)
                    self._judge()
                except FuryError as error:
                    if isinstance(error, StorageError):
                        self._record(error)
                    self._conclude(error.verdict, error.message)
                except Exception as error:  # noqa: BLE001 - nothing unforeseen may keep it from cleaning up and saying so
                    self._conclude_unforeseen(error)
                self._count_resources()
                self._clean_up()
                self._deliver()
                return self._report()
            finally:
                self._clean_up()
                self._close()

    # --- arm -------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        config = self.config
        self.chunks = _chunk_directory(config)
        if config.state_directory is not None:
            check_directory(config.state_directory, "state_directory", system_allowed=True)
        self._open_journal(self.chunks)
        badge(config)  # before anything is written; the channel reads it again
        self.console.say(
            f"{config.name} is preparing {count_text(config.jobs * config.keep, 'chunk')} of {config.chunk_mb} MB "
            f"in {self.chunks.path} (run {config.run_id})"
        )
        self.chunks.claim()
        self._resume()
        self.facts = {
            **machine_facts(self.chunks.seen_at, known_as=self.chunks.path),
            "journal": self._journal_place(self.chunks),
        }
        self.console.say(
            f"storage: {self.facts.get('file_system', 'unknown')} on {self.facts.get('device', 'unknown')}"
        )
        if self.facts.get("file_system") in ("tmpfs", "ramfs"):
            self.console.say(
                f"warning: {self.chunks.path} is memory, not a disk; its figures say nothing about storage"
            )
        self._require_memory()
        if not self.chunks.allocate(
            slots=config.jobs * config.keep,
            size=config.chunk_bytes,
            floor=config.free_floor_bytes,
            stopped=self._stopped,
            reserve=config.files == "reuse",
        ):
            raise self._stopped_early()
        self.writer = self._make_writer(self.chunks)
        try:
            self.calibrated = self.writer.calibrate(stopped=self._stopped)
        except DiskError as error:
            if config.io == "direct" and error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                raise self._no_direct("refused it") from error
            raise
        if self.stop_reason:
            raise self._stopped_early()
        self._confirm_io()
        self._require_two_rollovers()
        registry = make_registry(self._read, run_id=config.run_id, version=__version__, directory=self.chunks.path)
        address = config.metrics_address or own_address(config.collector_url)
        self.metrics = MetricsServer(registry, address=address, port=config.metrics_port, guard=guard(config))
        self.console.say(f"metrics: {self.metrics.url}")

    def _make_writer(self, chunks: ChunkDirectory) -> Writer:
        config = self.config
        flags = {"buffered": 0, "direct": os.O_DIRECT, "sync": os.O_SYNC}[config.io]
        new = config.files == "new"
        ring = Ring(
            chunk_bytes=config.chunk_bytes,
            open_slot=lambda slot: chunks.open_slot(slot, flags, new=new),
            open_back=chunks.open_back,
            settle=chunks.settle if new else None,
            slot_path=chunks.slot_path,
            free_bytes=lambda slot: chunks.free_beside(slot, config.chunk_bytes),
            free_floor_bytes=config.free_floor_bytes,
        )
        identity = f"{config.run_id}/{config.name}/{self.epoch}"
        work = Work(
            block_bytes=config.block_bytes,
            jobs=config.jobs,
            keep=config.keep,
            verify=config.verify == "readback",
            grace_s=config.drain_seconds / 2,
            rate_bytes_s=None if config.rate_mb_s is None else config.rate_mb_s * 1e6,
            ramp_s=float(config.ramp_seconds),
            identity=identity,
            seed=f"{config.seed}/{config.name}" if config.seed else identity,
            compress_percent=config.compress_percent,
            dedupe_percent=config.dedupe_percent,
        )
        return Writer(ring, work, on_start=self._on_start, on_rollover=self._on_rollover, on_end=self._on_writer_end)

    def _require_memory(self) -> None:
        """Raises FuryError where the jobs' buffers would take more than half of what is available."""
        config = self.config
        block = min(config.block_bytes, config.chunk_bytes)
        needed = config.jobs * (block + POOL_BYTES + (block if config.verify == "readback" else 0))
        try:
            available = int(psutil.virtual_memory().available)
        except (OSError, psutil.Error, RuntimeError):
            return
        if needed > available / 2:
            raise FuryError(
                Verdict.PRECONDITION,
                f"{count_text(config.jobs, 'job')} with blocks of {config.block_kb} KiB need {size_text(needed)} of memory, "
                f"and half of the {size_text(available)} that are available may be taken; give fewer jobs or a smaller "
                "block_kb",
            )

    def _confirm_io(self) -> None:
        """Finds out how the calibration's writes really went. Raises FuryError where direct ones were not."""
        assert self.chunks is not None
        assert self.writer is not None
        config, chunks = self.config, self.chunks
        self.watch = Watch(chunks.seen_at, io=config.io, slots=config.jobs * config.keep, open_slot=chunks.open_cached)
        self.honesty = self.watch.confirm(probed_bytes=self.writer.probed_bytes)
        if self.config.io == "direct" and self.honesty.io_used != "direct":
            raise self._no_direct("took it and wrote through the page cache all the same")
        unit = self.watch.offset_alignment
        if self.config.io == "direct" and unit is not None and self.config.block_bytes % unit:
            raise FuryError(
                Verdict.PRECONDITION,
                f"block_kb: {self.config.block_kb} is no multiple of the {unit} bytes to which this file system aligns "
                f"direct writes; give one, for example --block-kb {max(4, unit // 1024)}",
            )

    def _no_direct(self, what: str) -> FuryError:
        system = self.facts.get("file_system", "unknown")
        return FuryError(
            Verdict.PRECONDITION,
            f"io: direct is asked for, and the file system of {self.config.directory} ({system}) {what}; "
            "give io=buffered or io=sync, or a directory on another file system",
        )

    def _open_journal(self, chunks: ChunkDirectory) -> None:
        """Takes up what earlier processes of this run left; whatever is wrong with it, events are then kept in memory."""
        config = self.config
        if config.state_directory is None or config.collector_url is None:
            return
        run, epochs = read_epochs(config.state_directory)
        self.earlier = epochs if run == config.run_id else []
        path = os.path.join(config.state_directory, JOURNAL_NAME)
        self.keeper = Keeper(
            path,
            self.events,
            make_event=Event,
            on_trouble=self._on_journal_trouble,
            order=self.earlier,
            foreign=None if run in (None, config.run_id) else f"it is of run {run}",
        )
        if self.keeper.start(_JOURNAL_OPEN_S):
            self.earlier = [epoch for epoch in self.keeper.epochs if epoch not in self.earlier] + self.earlier
            self.console.say(f"journal: {path}, {self._journal_place(chunks)}")
            inherited = self.events.counts().inherited
            if inherited:
                self.console.say(f"{count_text(inherited, 'event')} of earlier processes will be delivered first")
        self._say_notices()

    def _journal_place(self, chunks: ChunkDirectory) -> str:
        """Whether keeping events and testing the storage are in each other's way."""
        if self.keeper is None or not self.keeper.attached or self.config.state_directory is None:
            return "in memory"
        try:
            same = os.stat(self.config.state_directory).st_dev == os.stat(chunks.storage).st_dev
        except OSError:
            same = True
        return "on the file system under test" if same else "on another file system than the one under test"

    def _on_journal_trouble(self, sentence: str, number: Optional[int]) -> None:  # mostly in the keeper's thread
        path = self.keeper.path if self.keeper is not None else None
        self.events.append(
            "error", {"message": sentence[:_TEXT_MOST], "operation": "journal", "path": path, "errno": number}
        )
        self.notices.append(sentence)

    def _say_notices(self) -> None:
        while self.notices:
            self.console.say(self.notices.popleft())

    def _resume(self) -> None:
        """Takes up where a process of this agent crashed: there is only the rest of its time to write in."""
        config = self.config
        if config.state_directory is None:
            return
        self.resumed = deadline.load(config.state_directory, run_id=config.run_id)
        if self.resumed is None:
            return
        left_s = self.resumed.ends_s - time.monotonic()
        if left_s <= 0:
            raise self._too_late()
        self.console.say(
            f"{config.name} has crashed and comes back; {left_s:.1f} of {config.seconds} s are left to write"
        )

    def _too_late(self) -> FuryError:
        return FuryError(
            Verdict.INCOMPLETE,
            "its process had crashed, and when it was back the time to write was over; "
            "what was not delivered before is not counted",
        )

    def _require_two_rollovers(self) -> None:
        config, rate = self.config, self.calibrated
        if self.resumed is not None:  # the run as a whole has been judged when it began
            return
        if config.rate_mb_s is not None:
            rate = min(rate, config.rate_mb_s * 1e6)
        needed = _ROLLOVERS_NEEDED * config.jobs
        expected = rate * config.seconds / config.chunk_bytes
        if expected >= needed:
            many = f"about {expected:.0f}" if expected < 1e6 else "more than a million"
            seen = rate_text(self.calibrated)
            self.console.say(f"this disk took {seen} when tried; {config.seconds} s hold {many} rollovers")
            return
        slow = rate < self.calibrated
        at = f"the {rate_text(rate)} of rate_mb_s" if slow else f"the {rate_text(rate)} this disk took when tried"
        said = f"{config.seconds} s at {at} hold {expected:.2g} rollovers"
        if config.allow_few_rollovers:
            self.console.say(f"{said} of {config.chunk_mb} MB; allow_few_rollovers is set, so it goes on")
            return
        # A fifth of margin, so that what is proposed still holds when the next trial sees a slightly slower disk.
        minutes = math.ceil(needed * config.chunk_bytes * 1.2 / rate / 60)
        chunk_mb = int(rate * config.seconds / needed / 1.2 / 1e6)
        ways = [f"give minutes={minutes} or more"] if minutes <= 10_080 else []
        ways += [f"give chunk_mb={chunk_mb} or less"] if chunk_mb >= 1 else []
        raise FuryError(
            Verdict.PRECONDITION,
            f"{said} of {config.chunk_mb} MB chunks and {needed} are needed; "
            + ", or ".join([*ways, "set allow_few_rollovers"]),
        )

    # --- the common start ------------------------------------------------------------------------------------------

    def _await_start(self) -> float:
        """The instant of time.monotonic() at which to begin: now by hand, the fleet's with a collector."""
        config = self.config
        if config.collector_url is None:
            return time.monotonic()
        self.channel = self._make_channel(config.collector_url)
        self.console.say(f"{config.name} is armed and waits for the start from {config.collector_url}")
        description = {
            "metrics_address": self.metrics.address if self.metrics else "127.0.0.1",
            "metrics_port": self.metrics.port if self.metrics else 0,
            "chunk_bytes": config.chunk_bytes,
            "seconds": config.runtime_s,
            "calibrated_bytes_per_second": self.calibrated,
            "host": self.host,
            "agent_version": __version__,
        }
        if config.state_directory is not None:
            problem = remember_epoch(config.state_directory, run_id=config.run_id, epoch=self.epoch)
            if problem is not None:
                self.console.say(f"{problem}; a process that would have to follow this one cannot name it")
        conflicts = 0
        exchanges: Deque[Exchange] = collections.deque(maxlen=_EXCHANGES_KEPT)  # older ones have drifted
        deadline_s = time.monotonic() + config.barrier_seconds
        predecessor_s = time.monotonic() + _PREDECESSOR_S
        missing: Optional[Tuple[str, ...]] = None
        trouble: Optional[str] = None
        apart_s = _READY_APART_S
        while not self.stop_reason:
            asked_s = time.monotonic()
            if asked_s >= deadline_s:
                raise self._barrier_timed_out(missing, trouble)
            # An earlier process may have died before the collector knew it: then the one before it is meant.
            after = self.earlier[-1 - conflicts % len(self.earlier)] if self.earlier else None
            try:
                exchange = self._ask(self.channel, {**description, "after": after})
            except Trouble as error:
                if self.resumed is not None:
                    self.console.say(
                        f"the collector does not answer ({error}); this run has started long ago, so it writes on"
                    )
                    return time.monotonic()
                if trouble is None:
                    self.console.say(f"the collector does not answer yet: {error}")
                trouble = str(error)
            except Refused as error:
                if self._may_pass(error) and asked_s < predecessor_s:
                    conflicts += 1
                    self._wait(_READY_APART_S)
                    continue
                raise FuryError(
                    Verdict.PRECONDITION,
                    f"the collector at {config.collector_url} refused {config.name} of run {config.run_id}: {error}",
                ) from error
            else:
                if exchange is None:  # a stop came, and no answer
                    break
                trouble = None
                exchanges.append(exchange)
                state = exchange.answer["state"]
                if state == "abort":
                    reason = exchange.answer.get("reason") or "no reason given"
                    raise FuryError(Verdict.INCOMPLETE, f"the collector called the run off: {reason}")
                if state == "start":
                    start_in_s = float(exchange.answer["start_in_s"])
                    if len(exchanges) < _EXCHANGES_WANTED and start_in_s > _READY_APART_S:
                        continue  # the first round trip is the slowest: ask again for a better clock offset
                    best = min(exchanges, key=lambda one: one.round_trip_s)
                    self.best_exchange = best
                    return max(time.monotonic(), exchange.collector_s + start_in_s + best.offset_s)
                missing = self._say_missing(exchange.answer, missing)
                apart_s = max(_READY_APART_S, min(_READY_APART_MOST_S, exchange.ask_in_s))
            self._wait(apart_s - (time.monotonic() - asked_s))
        self.collector_unreachable = self.collector_unreachable or trouble is not None
        raise self._stopped_early()

    def _may_pass(self, refused: Refused) -> bool:
        """Whether the collector takes a process for alive that has crashed: it will stop to when it hears no more of it."""
        if refused.status != _CONFLICT or "replaced" in refused.sentence:
            return False
        return bool(self.resumed or self.earlier or _ANOTHER_LIVES.search(refused.sentence))

    def _ask(self, channel: Channel, description: Mapping[str, Any]) -> Optional[Exchange]:
        """The collector's answer to ready; None when a stop came first. Raises Trouble and Refused.

        Asked in a thread of its own: a stop does not wait for a collector that hangs, nor for a lookup of its name.
        """
        answers: queue.SimpleQueue[Union[Exchange, Exception]] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(channel.ready(description))
            except Exception as error:  # noqa: BLE001 - raised again below
                answers.put(error)

        threading.Thread(target=ask, name="ready", daemon=True).start()
        while True:
            try:
                answer = answers.get(timeout=_ASK_S)
            except queue.Empty:
                if not self.stop_reason:
                    continue
                self.collector_unreachable = True
                self.channel = None  # still in use over there
                return None
            if isinstance(answer, Exception):
                raise answer
            return answer

    def _say_missing(self, answer: Mapping[str, Any], before: Optional[Tuple[str, ...]]) -> Tuple[str, ...]:
        names = answer.get("missing")
        missing = tuple(str(name) for name in names) if isinstance(names, list) else ()
        if missing != before and missing:
            self.console.say(f"waiting for {_names(missing)}")
        return missing

    def _barrier_timed_out(self, missing: Optional[Tuple[str, ...]], trouble: Optional[str]) -> FuryError:
        waited = f"within {self.config.barrier_seconds} s"
        if trouble is not None:
            self.collector_unreachable = True
            advice = "start it, or see to the network between"
            if NOT_BELIEVED in trouble:
                advice = "see whether that is this run's collector, and whether this host's clock is right"
            return FuryError(
                Verdict.PRECONDITION,
                f"the collector at {self.config.collector_url} did not answer {waited} ({trouble}); {advice}",
            )
        return FuryError(
            Verdict.INCOMPLETE,
            f"the start did not come {waited}; missing at the end: {_names(missing or ())}; "
            "see to them, or raise barrier_seconds",
        )

    # --- write -----------------------------------------------------------------------------------------------------

    def _write(self, start_s: float) -> None:
        config, writer = self.config, self.writer
        assert writer is not None
        assert self.chunks is not None
        if self.channel is not None:
            self._start_sender(self.channel)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)  # the writer gets the interpreter back soon after each call
        self.cpu_before_s = time.process_time()
        if self.watch is not None:
            self.watch.begin()
        self.sampler.sample()
        if self.stop_reason:
            raise self._stopped_early()
        runtime_s = self._runtime(start_s)
        # A process that takes up after a crash has what is left of the ramp too, and that comes first.
        ramp_s = max(0.0, runtime_s - config.seconds) if config.ramp_seconds else 0.0
        writer.start(start_s=start_s, runtime_s=runtime_s, ramp_s=ramp_s)
        if self.stop_reason:  # a signal between the two lines above had no writer to stop
            writer.stop()
        ahead = f", starting in {start_s - time.monotonic():.1f} s" if start_s - time.monotonic() > 0.1 else ""
        self.console.say(
            f"{config.name} is writing {config.chunk_mb} MB chunks to {self.chunks.path} "
            f"for {duration_text(round(runtime_s))}{self._manner(ramp_s)}{ahead}"
        )
        lines = RolloverLines(self.console)
        deadline_s = start_s + runtime_s
        next_beat, next_sample = start_s + config.heartbeat_seconds, start_s + config.sample_seconds
        while not self.writer_ended:
            now = time.monotonic()
            self._wait(min(next_beat, next_sample, now + _TICK_S) - now)
            now = time.monotonic()
            over = now >= deadline_s or self.stop_reason is not None
            if now >= next_beat:
                self._heartbeat("draining" if over else "writing")
                next_beat = _next_time(next_beat, config.heartbeat_seconds, now)
            if now >= next_sample and not self.writer_ended:
                self._sample()
                next_sample = _next_time(next_sample, config.sample_seconds, now)
            self._tell(lines, start_s)
            if over:
                self._require_answer(writer, min(deadline_s, self.stopped_s or deadline_s), now)
        writer.join(1.0)
        self._tell(lines, start_s)
        lines.flush()
        self.console.clear()
        self._sample()

    def _manner(self, ramp_s: float) -> str:
        """How it writes, as far as that is not what everybody does."""
        config = self.config
        told = [config.io] if config.io != "buffered" else []
        told += [f"{config.jobs} jobs"] if config.jobs > 1 else []
        told += [f"at most {config.rate_mb_s} MB/s"] if config.rate_mb_s is not None else []
        told += ["new files"] if config.files == "new" else []
        told += ["reading back"] if config.verify == "readback" else []
        told += [f"the first {ramp_s:.0f} s do not count"] if ramp_s > 0 else []
        return f" ({', '.join(told)})" if told else ""

    def _runtime(self, start_s: float) -> float:
        """How long to write from `start_s` on; noted for a process that would have to come after this one."""
        config, before = self.config, self.resumed
        if before is not None and before.ends_s <= start_s:
            raise self._too_late()
        if before is None:
            noted = deadline.Deadline(start_s + config.runtime_s)
        else:
            noted = deadline.Deadline(before.ends_s, before.processes + 1)
        if config.state_directory is not None:
            try:
                deadline.save(config.state_directory, noted, run_id=config.run_id)
            except OSError as error:
                self.console.say(
                    f"{config.state_directory} takes no note of the deadline ({error.strerror}); "
                    "if this process crashes the next one begins anew"
                )
        self.processes = noted.processes
        return noted.ends_s - start_s

    def _count_resources(self) -> None:
        """What the writing cost, counted before the chunks are removed."""
        if self.cpu_before_s is None:
            return
        self.cpu_s = time.process_time() - self.cpu_before_s
        if self.watch is not None and self.writer is not None and not self.writer_stuck:
            self.honesty = self.watch.end(
                handed_bytes=self.writer.progress().handed_bytes,
                generator_ratio=self.writer.generator_ratio,
                steadiness=self.writer.steadiness(),
            )

    def _on_start(self, instant_s: float) -> None:  # in the writer's thread, as are the next two
        best, config = self.best_exchange, self.config
        self.events.append(
            "start",
            {
                "start_collector_mono_s": None if best is None else instant_s - best.offset_s,
                "rtt_s": None if best is None else best.round_trip_s,
                "chunk_bytes": config.chunk_bytes,
                "block_bytes": min(config.block_bytes, config.chunk_bytes),
                "planned_seconds": config.runtime_s,
                "host": self.host,
                "facts": {**self.facts, "calibrated_bytes_per_second": self.calibrated, "agent_version": __version__},
            },
        )

    def _on_rollover(self, rollover: Rollover) -> None:
        self.events.append("rollover", dataclasses.asdict(rollover))
        self.fresh_rollovers.append(rollover)

    def _on_writer_end(self) -> None:
        self.writer_ended = True
        self.inbox.put(None)

    def _heartbeat(self, phase: str) -> None:
        progress = self._progress()
        self.events.append(
            "heartbeat",
            {
                "phase": phase,
                "written_bytes": progress.handed_bytes,
                "rollovers": progress.all_rollovers,
                "pending_events": self.events.counts().pending,
            },
        )

    def _sample(self) -> None:
        host, progress = self.sampler.sample(), self._progress()
        seq = self.events.append(
            "sample",
            {
                **dataclasses.asdict(host),
                "written_bytes": progress.durable_bytes,
                "read_bytes": progress.read_bytes,
                "disk_free_bytes": self._free_bytes(),
                "write_histogram": progress.write_latency.since(self.sampled_write).to_dict(),
                "fsync_histogram": progress.fsync_latency.since(self.sampled_fsync).to_dict(),
                "read_histogram": progress.read_latency.since(self.sampled_read).to_dict(),
            },
        )
        if seq is not None:  # what a dropped sample held goes into the next one
            self.sampled_write, self.sampled_fsync = progress.write_latency, progress.fsync_latency
            self.sampled_read = progress.read_latency

    def _tell(self, lines: RolloverLines, start_s: float) -> None:
        while self.fresh_rollovers:
            rollover = self.fresh_rollovers.popleft()
            self.rollovers_told += 1
            lines.add(
                RolloverFigures(
                    number=self.rollovers_told,
                    size=rollover.bytes,
                    seconds=rollover.seconds,
                    fsync_s=rollover.fsync_seconds,
                    write_p99_s=rollover.write_p99_s,
                    write_max_s=rollover.write_max_s,
                )
            )
        lines.tick()
        self._say_notices()
        elapsed = min(max(0.0, time.monotonic() - start_s), float(self.config.runtime_s))
        quiet = time.monotonic() - lines.last_line_s >= _QUIET_LINE_S
        if not self.console.live and not quiet:
            return
        progress = self._progress()
        line = (
            f"{self.config.name}: {elapsed:.0f} of {self.config.runtime_s} s, "
            f"{rate_text(progress.handed_bytes / max(elapsed, 0.001))}, {count_text(progress.all_rollovers, 'rollover')}"
        )
        if self.console.live:
            self.console.show(line)
        else:
            self.console.say(line)
            lines.last_line_s = time.monotonic()

    def _require_answer(self, writer: Writer, ended_s: float, now_s: float) -> None:
        """Raises FuryError when the writer has been in one call for longer than even its backlog explains."""
        progress = self._progress()
        backlog_s = 2 * (progress.handed_bytes - progress.durable_bytes) / max(self.calibrated, 1.0)
        patience_s = self.config.drain_seconds + backlog_s
        if now_s - ended_s > patience_s and not self.writer_ended:
            self.writer_stuck = True
            operation, path = writer.doing
            raise DiskError(
                f"{operation} of {path} has not returned for {patience_s:.0f} s after the end of writing; "
                f"{progress.handed_bytes - progress.durable_bytes} bytes written since the last good fsync are unknown; "
                "look at the kernel's log and at this disk; nothing could be removed",
                operation=operation,
                path=path,
                error=OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)),
            )

    def _record(self, error: StorageError) -> None:
        self.errors += 1
        progress = self._progress()
        self.unknown_bytes = progress.handed_bytes - progress.durable_bytes
        self.events.append(
            "error",
            {
                "message": error.message[:_TEXT_MOST],
                "operation": error.operation,
                "path": error.path,
                "errno": error.errno,
            },
        )

    def _judge(self) -> None:
        writer, config = self.writer, self.config
        assert writer is not None
        progress = writer.progress()
        if writer.failure is not None:
            raise writer.failure
        after = f"after {max(0.0, (writer.stopped_s or 0.0) - (progress.started_s or 0.0)):.1f} of {config.runtime_s} s"
        if writer.floor_reached is not None:
            raise FuryError(
                Verdict.INCOMPLETE,
                f"stopped after {progress.seconds:.1f} of {config.seconds} s: {size_text(writer.floor_reached)} are "
                f"free in {config.directory} and {size_text(config.free_floor_bytes)} have to stay free; "
                "something else fills this file system",
            )
        if writer.stopped_s is not None:
            raise FuryError(Verdict.INCOMPLETE, f"{self.stop_reason or 'stopped'} {after}")
        if progress.rollovers < _ROLLOVERS_NEEDED and not config.allow_few_rollovers and self.resumed is None:
            raise FuryError(
                Verdict.INCOMPLETE,
                f"only {count_text(progress.rollovers, 'rollover')} of {config.chunk_mb} MB came about in "
                f"{config.seconds} s and {_ROLLOVERS_NEEDED} are needed; "
                "give more minutes or smaller chunks, or set allow_few_rollovers",
            )
        self._conclude(Verdict.PASS, "")

    # --- deliver and report ----------------------------------------------------------------------------------------

    def _clean_up(self) -> None:
        chunks = self.chunks
        if chunks is None or not chunks.claimed:
            return
        if self.writer is not None and not self.writer_ended and not self.writer_stuck:
            self.writer.stop()  # only when something unforeseen ended the loop above
            self.writer_stuck = not self.writer.join(self.config.drain_seconds)
        if self.writer_stuck:
            self.cleanup_left = f"{chunks.path} is left: its disk does not answer"
            return
        self.cleanup_left = chunks.remove()
        if self.cleanup_left and self.verdict is Verdict.PASS:
            self._conclude(Verdict.CLEANUP_UNCONFIRMED, self.cleanup_left)

    def _deliver(self) -> None:
        """Appends the final, and waits until the collector has everything, the time is up or a second signal comes."""
        progress, counts, config = self._progress(), self.events.counts(), self.config
        self.events.append(
            "final",
            {
                "verdict": self.verdict.value,
                "reason": (self.reason or self._pass_sentence(progress))[:_TEXT_MOST],
                "written_bytes": progress.written_bytes,
                "ramp_bytes": progress.ramp_bytes,
                "read_bytes": progress.read_bytes,
                "tail_bytes": progress.tail_bytes,
                "rollovers": progress.rollovers,
                "seconds": progress.seconds,
                "samples_dropped": counts.samples_dropped,
                "heartbeats_coalesced": counts.heartbeats_coalesced,
                "errors": self.errors,
                "write_histogram": progress.write_latency.to_dict(),
                "fsync_histogram": progress.fsync_latency.to_dict(),
                "read_histogram": progress.read_latency.to_dict(),
                "device_written_bytes": self.honesty.process_written_bytes,
                "honesty": dataclasses.asdict(self.honesty),
                "notes": self._notes(),
            },
        )
        if config.collector_url is None:
            return
        if self.sender is None:
            try:
                self._start_sender(self.channel or self._make_channel(config.collector_url))
            except FuryError:  # without credentials nothing is sent: that is what it ended with
                return
        sender = self.sender
        assert sender is not None
        sender.finish()
        now = time.monotonic()
        deadline_s = now + (_UNREACHABLE_S if self.collector_unreachable else config.drain_seconds)
        if self.signalled:  # what is not delivered by then is in the journal
            patience_s = _UNREACHABLE_S if progress.started_s is None else _SIGNALLED_S
            deadline_s = min(deadline_s, max(now + _UNREACHABLE_S, self.stopped_s + patience_s))
        told_s = time.monotonic() + 2.0
        while not sender.join(0.1) and time.monotonic() < deadline_s and not self.hurry:
            if time.monotonic() >= told_s:
                told_s = deadline_s
                trouble = f" ({sender.trouble})" if sender.trouble else ""
                pending = count_text(self.events.counts().pending, "event")
                left_s = max(0.0, deadline_s - time.monotonic())
                self.console.say(f"delivering {pending} to the collector for up to {left_s:.0f} s more{trouble}")
        sender.cancel()
        self._judge_delivery(sender)

    def _notes(self) -> List[str]:
        """What a reader of the figures has to know: each a sentence."""
        told = notes(self.honesty, self.facts)
        progress = self._progress()
        unread = progress.written_bytes - progress.read_bytes
        if self.config.verify == "readback" and unread > 0:
            told.append(f"{size_text(unread)} were not read back: there was no time left, or it was stopped")
        return told

    def _judge_delivery(self, sender: Sender) -> None:
        counts = self.events.counts()
        problem = None
        if counts.set_aside:
            sentence = sender.refusal or "an earlier process of this agent noted that"
            problem = f"the collector refused {count_text(counts.set_aside, 'event')}: {sentence}"
        elif counts.pending:
            trouble = sender.trouble or "there was no time left"
            pending, total = count_text(counts.pending, "event"), counts.issued + counts.inherited
            kept = "; they are in the journal" if self.keeper is not None and self.keeper.attached else ""
            problem = f"the collector did not get {pending} of {total}: {trouble}{kept}"
        elif not sender.receipt:
            problem = "the collector has taken every event but gave no receipt; look at its messages"
        if problem is None:
            return
        if self.verdict is Verdict.PASS:
            self._conclude(Verdict.INCOMPLETE, problem)
        else:
            self.console.say(problem)

    def _report(self) -> Result:
        progress = self._progress()
        self._close_journal()
        self._say_notices()
        if not self.reason:
            self.reason = self._pass_sentence(progress)
        summary = self._summary(progress)
        if progress.started_s is not None:
            self.console.table(f"statistics of {self.config.name}", self._rows(progress))
        if progress.started_s is not None:
            for note in self._notes():
                self.console.say(f"note: {note}")
        if self.cleanup_left and self.verdict is not Verdict.CLEANUP_UNCONFIRMED:
            self.console.say(self.cleanup_left)
        self._write_result(summary)
        subject = f"{self.config.name} " if self.verdict is Verdict.PASS else f"{self.config.name}: "
        self.console.say(f"{self.verdict.value}: {subject}{self.reason}")
        return Result(self.verdict, self.reason, summary)

    def _close_journal(self) -> None:
        keeper, directory = self.keeper, self.config.state_directory
        if keeper is None or directory is None or not keeper.attached:
            return
        if not keeper.finish(_JOURNAL_CLOSE_S):
            self.notices.append(f"the journal {keeper.path} could not be closed; what it holds may not be complete")
        elif keeper.left == 0:
            forget_epochs(directory)

    def _summary(self, progress: Progress) -> Dict[str, Any]:
        counts = self.events.counts()
        return {
            "name": self.config.name,
            "host": self.host,
            "verdict": self.verdict.value,
            "reason": self.reason,
            "epochs": max(self.processes, 1 + len(self.earlier)),
            "previous_epochs": {
                epoch: dataclasses.asdict(previous) for epoch, previous in self.events.previous().items()
            },
            "events_issued": counts.issued,
            "events_stored": counts.stored,
            "events_pending": counts.pending,
            "events_refused": counts.set_aside,
            "written_bytes": progress.written_bytes,
            "ramp_bytes": progress.ramp_bytes,
            "read_bytes": progress.read_bytes,
            "rollovers": progress.rollovers,
            "seconds": progress.seconds,
            "throughput_bytes_per_second": _rate(progress),
            "write_latency_seconds": progress.write_latency.summary(),
            "fsync_latency_seconds": progress.fsync_latency.summary(),
            "read_latency_seconds": progress.read_latency.summary(),
            "device_written_bytes": self.honesty.process_written_bytes,
            "honesty": dataclasses.asdict(self.honesty),
            "notes": self._notes(),
            "facts": dict(self.facts),
            "cleanup": "unconfirmed" if self.cleanup_left else "confirmed",
            "run_id": self.config.run_id,
            "calibrated_bytes_per_second": self.calibrated,
            "agent_cpu_seconds": self.cpu_s,
            "unknown_bytes": self.unknown_bytes,
            "journal": {
                "place": self.facts.get("journal", "in memory"),
                "failures": 0 if self.keeper is None else self.keeper.failures,
                "set_aside": [] if self.keeper is None else self.keeper.set_aside,
                "events_left": None if self.keeper is None else self.keeper.left,
            },
        }

    def _rows(self, progress: Progress) -> List[Tuple[str, str]]:
        counts, host = self.events.counts(), self.sampler.latest
        counted = self.honesty.process_written_bytes
        device = "unknown" if counted is None else size_text(counted)
        gigabytes = progress.handed_bytes / 1e9
        cpu = f"{self.cpu_s / gigabytes:.2f} CPU s/GB" if gigabytes else "-"
        delivered = f", {counts.stored} delivered" if self.config.collector_url else " (not sent: no collector_url)"
        ramp = f", and {size_text(progress.ramp_bytes)} in the ramp" if progress.ramp_bytes else ""
        rows = [
            ("written", f"{size_text(progress.written_bytes)} durable{ramp} (the kernel counted {device})"),
            ("time", f"{progress.seconds:.1f} s"),
            ("rate", rate_text(_rate(progress))),
            ("rollovers", f"{progress.rollovers} of {self.config.chunk_bytes} bytes"),
            ("write", latency_row(progress.write_latency.summary())),
            ("fsync", latency_row(progress.fsync_latency.summary())),
        ]
        if self.config.verify == "readback":
            spent = progress.read_latency.sum
            rate = rate_text(progress.read_bytes / spent) if spent else "-"
            rows.append(("read", latency_row(progress.read_latency.summary())))
            rows.append(("read back", f"{size_text(progress.read_bytes)} at {rate}, as written"))
        return [
            *rows,
            ("agent", f"{cpu}, {host.agent_rss_bytes / 1048576:.0f} MiB of memory"),
            ("events", f"{counts.issued} issued{delivered}"),
        ]

    def _pass_sentence(self, progress: Progress) -> str:
        return (
            f"wrote {size_text(progress.written_bytes)} in {progress.seconds:.1f} s ({rate_text(_rate(progress))}), "
            f"{count_text(progress.rollovers, 'rollover')}, nothing left behind"
        )

    def _write_result(self, summary: Mapping[str, Any]) -> None:
        directory = self.config.state_directory
        if directory is None:
            return
        try:
            write_result(directory, summary)
        except OSError as error:
            self.console.say(f"result.json could not be written to {directory} ({error.strerror})")

    # --- shared by the above ---------------------------------------------------------------------------------------

    def _conclude(self, verdict: Verdict, reason: str) -> None:
        self.verdict, self.reason = verdict, reason

    def _conclude_unforeseen(self, error: BaseException) -> None:
        if self.debug:
            traceback.print_exception(type(error), error, error.__traceback__)
        self._conclude(
            Verdict.INCOMPLETE,
            f"something unforeseen happened ({type(error).__name__}: {error}); run it with --debug and report it",
        )

    def _make_channel(self, url: str) -> Channel:
        return Channel(
            url, run_id=self.config.run_id, agent=self.config.name, epoch=self.epoch, badge=badge(self.config)
        )

    def _start_sender(self, channel: Channel) -> None:
        self.sender = Sender(
            channel,
            peek=self.events.peek,
            acknowledge=self.events.acknowledge,
            set_aside=self.events.set_aside,
            on_command=self._on_command,
            more=self.events.more,
        )
        self.sender.start()

    def _on_command(self, command: str) -> None:  # in the sender's thread
        if command == "stop":
            self._stop("stopped by the collector")

    def _stop(self, reason: str) -> None:
        if self.stop_reason is None:
            self.stopped_s = time.monotonic()
            self.stop_reason = reason
        if self.writer is not None:
            self.writer.stop()
        self.inbox.put(None)

    def _stopped(self) -> bool:
        return self.stop_reason is not None

    def _stopped_early(self) -> FuryError:
        return FuryError(Verdict.INCOMPLETE, f"{self.stop_reason} before the start")

    def _on_signal(self, number: int, _frame: Any) -> None:
        if self.stop_reason is not None and time.monotonic() - self.stopped_s > _SECOND_SIGNAL_S:
            self.hurry = True  # asked twice: do not wait for the collector either
        self.signalled = True
        self._stop(f"stopped by {signal.Signals(number).name}")

    @contextlib.contextmanager
    def _signals_caught(self) -> Any:
        before: Dict[signal.Signals, Any] = {}
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGTERM:  # nohup is respected
                before[number] = signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wait(self, seconds: float) -> None:
        """Waits for `seconds`, or until somebody puts something into the inbox."""
        with contextlib.suppress(queue.Empty):
            self.inbox.get(timeout=max(0.0, seconds))

    def _progress(self) -> Progress:
        return self.writer.progress() if self.writer is not None else _NO_PROGRESS

    def _free_bytes(self) -> Optional[int]:
        try:
            return None if self.chunks is None else self.chunks.free_bytes()
        except OSError:
            return None

    def _read(self) -> Reading:
        progress, host = self._progress(), self.sampler.latest
        return Reading(
            written_bytes=progress.durable_bytes,
            read_bytes=progress.read_bytes,
            rollovers=progress.all_rollovers,
            write_errors=self.errors,
            write_latency=progress.write_latency,
            fsync_latency=progress.fsync_latency,
            read_latency=progress.read_latency,
            journal_events=self.events.counts().pending,
            chunk_bytes=self.config.chunk_bytes,
            disk_free_bytes=self._free_bytes(),
            host=host,
        )

    def _close(self) -> None:
        if self.config.state_directory is not None:
            deadline.forget(self.config.state_directory)
        if self.metrics is not None:
            self.metrics.close()
        if self.sender is not None:
            self.sender.cancel()
        elif self.channel is not None:
            self.channel.close()


_NO_PROGRESS = Progress()


def _next_time(planned_s: float, interval_s: float, now_s: float) -> float:
    """The next multiple of the interval that is still ahead: what was missed is not made up for."""
    return planned_s + interval_s * (math.floor((now_s - planned_s) / interval_s) + 1)


def _rate(progress: Progress) -> float:
    return progress.written_bytes / progress.seconds if progress.seconds else 0.0


def _names(names: Tuple[str, ...]) -> str:
    shown = ", ".join(names[:5]) or "nobody named"
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
