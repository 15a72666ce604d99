"""What a person reads: lines on standard output, one live line on a terminal, and a table at the end."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from typing import List, Mapping, Optional, Sequence, TextIO, Tuple

_LINES_APART_S = 0.5
_SUMMARY_APART_S = 10.0


def size_text(size: float) -> str:
    """Bytes in the decimal unit that fits: `12.3 GB`, `205 MB`."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            value = size / scale
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{size:.0f} bytes"


def rate_text(bytes_per_second: float) -> str:
    """A rate: `205 MB/s`."""
    return size_text(bytes_per_second).replace("bytes", "B") + "/s"


def latency_text(seconds: Optional[float]) -> str:
    """A latency in the unit that fits: `850 us`, `1.2 ms`, `3.4 s`; `-` for none."""
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def duration_text(seconds: int) -> str:
    """A planned duration: `1 minute`, `90 seconds`."""
    count, unit = (seconds // 60, "minute") if seconds % 60 == 0 else (seconds, "second")
    return f"{count} {unit}" + ("" if count == 1 else "s")


def count_text(count: int, noun: str) -> str:
    """A count with its noun: `1 rollover`, `2 rollovers`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


class Console:
    """Prints, and never fails the run: once standard output is gone it is silent."""

    def __init__(self, stream: Optional[TextIO] = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self.live = self._stream.isatty()
        self._live_length = 0

    def say(self, line: str) -> None:
        """Prints a line, above the live one if there is one."""
        self._write(self._erase() + line + "\n")

    def show(self, line: str) -> None:
        """Replaces the live line of a terminal; nothing elsewhere."""
        if self.live:
            width = max(20, _terminal_width() - 1)
            line = line[:width]
            self._write(self._erase() + line)
            self._live_length = len(line)

    def clear(self) -> None:
        """Removes the live line."""
        self._write(self._erase())

    def table(self, title: str, rows: Sequence[Tuple[str, str]]) -> None:
        """Prints rows of a label and a text, aligned under a title."""
        width = max(len(label) for label, _ in rows)
        self.say(title)
        for label, text in rows:
            self.say(f"  {label:<{width}}  {text}")

    def _erase(self) -> str:
        blank = "\r" + " " * self._live_length + "\r" if self._live_length else ""
        self._live_length = 0
        return blank

    def _write(self, text: str) -> None:
        if not text:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the reader is gone; the writer has work to do all the same
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process
            self.live = False


@dataclasses.dataclass(frozen=True)
class RolloverFigures:
    """What a line about a rollover says; `number` counts from 1, as people do."""

    number: int
    size: int
    seconds: float
    fsync_s: float
    write_p99_s: float
    write_max_s: float


class RolloverLines:
    """Each rollover as a line while they are rare; a burst becomes one line each 10 s."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._printed_s = float("-inf")
        self._held: List[RolloverFigures] = []
        self._held_since_s = 0.0
        self.last_line_s = time.monotonic()

    def add(self, figures: RolloverFigures) -> None:
        """Prints the rollover, or keeps it for the summary when the last line was a moment ago."""
        now = time.monotonic()
        if not self._held and now - self._printed_s >= _LINES_APART_S:
            self._console.say(
                f"rollover {figures.number}: {size_text(figures.size)} in {latency_text(figures.seconds)} "
                f"({rate_text(figures.size / max(figures.seconds, 1e-9))}), fsync {latency_text(figures.fsync_s)}, "
                f"write p99 {latency_text(figures.write_p99_s)}, max {latency_text(figures.write_max_s)}"
            )
            self._printed_s = self.last_line_s = now
            return
        if not self._held:
            self._held_since_s = self._printed_s
        self._held.append(figures)
        self.tick()

    def tick(self) -> None:
        """Prints what was kept once it is 10 s old."""
        if self._held and time.monotonic() - self._held_since_s >= _SUMMARY_APART_S:
            self.flush()

    def flush(self) -> None:
        """Prints what was kept."""
        if not self._held:
            return
        now = time.monotonic()
        held, self._held = self._held, []
        size = sum(figures.size for figures in held)
        seconds = now - self._held_since_s  # those of several jobs overlap
        which = f"rollovers {held[0].number}-{held[-1].number}" if len(held) > 1 else f"rollover {held[0].number}"
        self._console.say(
            f"{which}: {size_text(size)} in {latency_text(seconds)} "
            f"({rate_text(size / max(seconds, 1e-9))}), slowest fsync {latency_text(max(f.fsync_s for f in held))}, "
            f"slowest write {latency_text(max(f.write_max_s for f in held))}"
        )
        self._printed_s = self.last_line_s = now


def latency_row(summary: Mapping[str, Optional[float]]) -> str:
    """The percentiles of a histogram's summary in one row."""
    labels = {"p50": "p50", "p95": "p95", "p99": "p99", "p999": "p99.9", "max": "max"}
    return "  ".join(f"{label} {latency_text(summary.get(key)):>7}" for key, label in labels.items())


def _terminal_width() -> int:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
