"""What Prometheus sees, byte for byte, and a server that nobody can block."""

from __future__ import annotations

import http.client
import re
import socket
from pathlib import Path
from typing import Iterator, List

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fury_agent.histogram import Histogram
from fury_agent.metrics import (
    AgentCollector,
    HostSample,
    HostSampler,
    MetricsServer,
    Reading,
    make_registry,
)
from fury_agent.verdict import FuryError, Verdict

GOLDEN = Path(__file__).parent / "metrics.golden"


def reading() -> Reading:
    write, fsync, read = Histogram(), Histogram(), Histogram()
    for value in (0.00004, 0.0003, 0.0003, 0.02, 40.0):
        write.add(value)
    fsync.add(0.3)
    read.add(0.002)
    host = HostSample(
        interval_s=10.0,
        agent_cpu_ratio=0.1,
        agent_rss_bytes=30_000_000,
        host_cpu_ratio=0.25,
        host_memory_used_bytes=1_000_000_000,
        host_memory_total_bytes=4_000_000_000,
    )
    return Reading(
        written_bytes=40_001_536,
        read_bytes=20_000_768,
        rollovers=2,
        write_errors=0,
        write_latency=write,
        fsync_latency=fsync,
        read_latency=read,
        journal_events=3,
        chunk_bytes=20_000_768,
        disk_free_bytes=123_456_789,
        host=host,
    )


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    """A server of one fixed reading on a free port."""
    registry = make_registry(reading, run_id="r1", version="0.1.0", directory="/d")
    server = MetricsServer(registry, address="127.0.0.1", port=0)
    yield server
    server.close()


def test_the_exposition_is_the_golden_one() -> None:
    """Names, help texts, buckets and values; a change of this file is a change of the contract with dashboards."""
    registry = CollectorRegistry()
    registry.register(AgentCollector(reading, run_id="r1", version="0.1.0", directory='/d"\\x'))
    assert generate_latest(registry).decode() == GOLDEN.read_text()


def test_every_metric_of_the_contract_is_there_and_no_created_series() -> None:
    """The names of docs/protocol.md, with the process' own beside them."""
    text = generate_latest(make_registry(reading, run_id="r1", version="0.1.0", directory="/d")).decode()
    contract = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    section = contract.split("## Metrics of the agent")[1].split("##")[0]
    names: List[str] = re.findall(r"`(fury_[a-z_]+)", section)
    assert len(names) > 10
    for name in names:
        assert re.search(rf"^{name}(_bucket)?[ {{]", text, re.MULTILINE), name
    assert "process_resident_memory_bytes" in text
    assert "_created" not in text


def test_it_is_served_where_it_says(server: MetricsServer) -> None:
    """Port 0 takes a free one and the real one is in the URL; another path is not found."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    assert response.status == 200
    assert response.getheader("Content-Type", "").startswith("text/plain; version=")
    assert b"fury_rollovers_total 2.0" in response.read()
    connection.close()
    connection.request("GET", "/")
    assert connection.getresponse().status == 404
    connection.close()
    assert server.url == f"http://127.0.0.1:{server.port}/metrics"


def test_idle_clients_do_not_keep_others_out(server: MetricsServer) -> None:
    """Ten silent connections do not keep a scrape from its answer."""
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request("GET", "/metrics")
    assert connection.getresponse().status == 200
    connection.close()
    for one in idle:
        one.close()


def test_a_port_in_use_is_refused_with_what_to_do(server: MetricsServer) -> None:
    """The sentence names address, port and the ways out."""
    with pytest.raises(FuryError, match=f"metrics_port: {server.port} at 127.0.0.1 is in use") as caught:
        MetricsServer(CollectorRegistry(), address="127.0.0.1", port=server.port)
    assert caught.value.verdict is Verdict.PRECONDITION


def test_an_address_of_another_host_is_refused() -> None:
    """192.0.2.1 is nobody's address."""
    with pytest.raises(FuryError, match="is not an address of this host"):
        MetricsServer(CollectorRegistry(), address="192.0.2.1", port=0)


def test_the_host_is_measured() -> None:
    """Shares lie between 0 and 1, memory is what the kernel says."""
    sampler = HostSampler()
    sum(range(1_000_000))
    sample = sampler.sample()
    assert sample.interval_s > 0
    assert sample.agent_cpu_ratio > 0
    assert sample.host_cpu_ratio is not None
    assert 0 <= sample.host_cpu_ratio <= 1
    assert sample.host_memory_used_bytes is not None
    assert sample.host_memory_total_bytes is not None
    assert 0 < sample.host_memory_used_bytes < sample.host_memory_total_bytes
    assert sample.agent_rss_bytes > 1_000_000
