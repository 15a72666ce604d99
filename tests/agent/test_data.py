"""What is written: every 4 KiB is unique and says what it is, and whatever is changed is found."""

from __future__ import annotations

import functools
import itertools
import sys
from typing import Any, Dict, Iterator, List, Set, Tuple, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fury_agent.data import UNIT, Data

MIB = 1 << 20


def data(**more: Any) -> Data:
    settings = {"block_bytes": 4 * UNIT, "chunk_bytes": 6 * MIB, "identity": "r/alecto/1", "seed": "r/alecto/1"}
    return Data(**{**settings, **more})


def written(made: Data, chunk: int, chunk_bytes: int = 6 * MIB) -> Iterator[bytes]:
    """The blocks of a chunk as a writer puts them into its file: the last one in part."""
    left = chunk_bytes
    for index in itertools.count():
        yield bytes(made.block(chunk, index)[:left])
        left -= made.block_bytes
        if left <= 0:
            return


def parts(blocks: Iterator[bytes], size: int) -> List[bytes]:
    return [block[start : start + size] for block in blocks for start in range(0, len(block), size)]


def word(unit: Union[bytes, memoryview], number: int) -> int:
    """One of the words at the start of 4 KiB."""
    return int.from_bytes(unit[8 * number : 8 * number + 8], sys.byteorder)


def pieces(made: Data, chunks: range, shift: int = 0) -> Set[bytes]:
    """Every 4 KiB of some chunks, counted from `shift` on; none of them twice."""
    whole = b"".join(bytes(part) for chunk in chunks for part in written(made, chunk))
    found = [whole[start : start + UNIT] for start in range(shift, len(whole) - UNIT + 1, UNIT)]
    assert len(set(found)) == len(found) >= len(chunks) * 6 * MIB // UNIT - 1
    return set(found)


@pytest.mark.parametrize("shift", [0, 16, 512, 2048, 4080])
@pytest.mark.parametrize("block_bytes", [UNIT, 5 * UNIT, MIB])
def test_no_two_4_kib_are_alike(block_bytes: int, shift: int) -> None:
    """Over the chunks of two jobs of two agents, and far beyond the pool's 2 MiB, wherever an array begins to compare."""
    seen: Set[bytes] = set()
    for agent, job in itertools.product(("alecto", "megaera"), (0, 1)):
        identity = f"r/{agent}/1"
        made = data(block_bytes=block_bytes, identity=identity, seed=identity, job=job, jobs=2)
        mine = pieces(made, range(job, job + 4, 2), shift)
        assert not seen & mine
        seen |= mine


@pytest.mark.parametrize("block_bytes", [UNIT, 320 * UNIT, MIB, 3 * MIB])
def test_random_bytes_come_again_only_after_2_mib(block_bytes: int) -> None:
    """A compressor that looks back less than that finds nothing; what comes again has another stamp."""
    made = data(block_bytes=block_bytes, chunk_bytes=6 * MIB)
    found = [bytes(part)[16:UNIT] for part in parts(written(made, 0), UNIT)]
    first: Dict[bytes, int] = {}
    for number, unit in enumerate(found):
        assert number - first.get(unit, -MIB) >= 2 * MIB // UNIT
        first[unit] = number


@pytest.mark.parametrize(
    ("identity", "job"), [("r/alecto/2", 0), ("r/megaera/1", 0), ("other/alecto/1", 0), ("r/alecto/1", 1)]
)
def test_the_same_seed_never_writes_the_same_elsewhere(identity: str, job: int) -> None:
    """Another epoch, agent, run or job with the same random data still writes other 4 KiB."""
    assert not pieces(data(seed="7"), range(1)) & pieces(
        data(seed="7", identity=identity, job=job, jobs=2), range(job, job + 1)
    )


def test_the_same_seed_gives_the_same_random_data() -> None:
    """Whoever writes it and when: all but the stamp; another seed or job gives other data."""

    def pool(**more: Any) -> List[bytes]:
        return [bytes(unit)[16:] for unit in parts(written(data(**more), 0), UNIT)]

    first = pool(seed="7")
    assert pool(seed="7", identity="r/megaera/5") == first
    assert pool(seed="8") != first
    assert pool(seed="7", job=1) != first


@pytest.mark.parametrize("block_units", [1, 3, 7, 32, 40, 256])
@pytest.mark.parametrize("chunk", [0, 5, 2**31])
def test_every_4_kib_says_what_it_is(block_units: int, chunk: int) -> None:
    """Its process, chunk, block, and number in that, for blocks that divide the chunk's 40 and that don't."""
    made = data(block_bytes=block_units * UNIT, chunk_bytes=40 * UNIT, job=1, jobs=4)
    found = parts(written(made, chunk, 40 * UNIT), UNIT)
    places = [(word(unit, 1) >> 32, word(unit, 1) & 0xFFFFFFFF, word(unit, 0) & 0xFFFF) for unit in found]
    assert places == [(chunk, *divmod(number, block_units)) for number in range(40)]
    whose = {word(unit, 0) >> 16 for unit in found}
    assert whose == {word(data(chunk_bytes=40 * UNIT).block(3, 0), 0) >> 16}
    assert word(data(identity="r/alecto/2").block(0, 0), 0) >> 16 not in whose


@pytest.mark.parametrize("percent", [0, 30, 100])
@pytest.mark.parametrize("block_bytes", [16 * UNIT, MIB])
def test_so_many_blocks_are_repeats_as_asked_for(percent: int, block_bytes: int) -> None:
    """The share of 4 KiB that were seen before, in 600 MB, is within a point of dedupe_percent."""
    made = data(block_bytes=block_bytes, chunk_bytes=20 * MIB, dedupe_percent=percent)
    seen: Set[int] = set()
    again = count = 0
    for chunk in range(30):
        for unit in parts(written(made, chunk, 20 * MIB), UNIT):
            known = hash(unit)
            again += known in seen
            seen.add(known)
            count += 1
    assert again / count == pytest.approx(percent / 100, abs=0.01)


def test_repeats_are_spread_evenly() -> None:
    """Of any ten blocks in a row three are repeats, give or take one."""
    made = data(dedupe_percent=30)
    repeated = [word(made.block(0, index), 1) >> 32 != 0 for index in range(384)]
    assert {sum(repeated[start : start + 10]) for start in range(374)} <= {2, 3, 4}


@pytest.mark.parametrize("percent", [0, 1, 50, 99, 100])
def test_so_much_of_each_4_kib_is_zeros_as_asked_for(percent: int) -> None:
    """Give or take the stamp and the zeros that random data has of itself."""
    for unit in parts(written(data(compress_percent=percent), 0, MIB), UNIT):
        assert unit.count(0) / UNIT == pytest.approx(percent / 100, abs=0.04)


@pytest.mark.parametrize("percent", [13, 50, 100])
def test_zeros_do_not_make_two_4_kib_alike(percent: int) -> None:
    """Also where there are no random bytes there is the stamp."""
    pieces(data(compress_percent=percent), range(2))


@functools.cache
def made_once(units: int, compress_percent: int, dedupe_percent: int) -> Data:
    return data(block_bytes=units * UNIT, compress_percent=compress_percent, dedupe_percent=dedupe_percent)


blocks = st.tuples(
    st.sampled_from([(1, 0, 0), (3, 50, 0), (3, 0, 30), (16, 100, 100), (256, 90, 30)]),
    st.integers(0, 2**31),
    st.integers(0, 5),
)


def whole(block: Tuple[Tuple[int, int, int], int, int]) -> Tuple[Data, bytearray]:
    settings, chunk, index = block
    made = made_once(*settings)
    return made, bytearray(made.block(chunk, index))


@given(blocks, st.data())
def test_an_unchanged_block_differs_nowhere(block: Tuple[Tuple[int, int, int], int, int], draw: st.DataObject) -> None:
    """Nor does the part of it that ends a chunk."""
    made, found = whole(block)
    units = draw.draw(st.integers(1, len(found) // UNIT))
    assert made.differs(block[1], block[2], memoryview(found)) is None
    assert made.differs(block[1], block[2], memoryview(found)[: units * UNIT]) is None


@given(blocks, st.data(), st.integers(1, 255))
def test_any_changed_byte_is_found_where_it_is(
    block: Tuple[Tuple[int, int, int], int, int], draw: st.DataObject, change: int
) -> None:
    """Its offset, what was expected there and what was found, up to 16 bytes within its 4 KiB, and that it is alone."""
    made, found = whole(block)
    place = draw.draw(st.integers(0, len(found) - 1))
    end = min(place + 16, (place // UNIT + 1) * UNIT)
    expected = bytes(found[place:end])
    found[place] ^= change
    told = made.differs(block[1], block[2], memoryview(found))
    assert told is not None
    assert (told.offset, told.expected, told.found) == (place, expected, bytes(found[place:end]))
    assert told.differing == 1
    assert told.origin


@given(st.integers(0, 15), st.integers(0, 15), st.integers(0, 1000))
def test_swapped_4_kib_name_where_they_belong(first: int, second: int, chunk: int) -> None:
    """The first of two that changed places is reported, as the other one."""
    made = made_once(16, 0, 0)
    found = bytearray(made.block(chunk, 2))
    at, other = (slice(unit * UNIT, (unit + 1) * UNIT) for unit in (first, second))
    found[at], found[other] = found[other], found[at]
    told = made.differs(chunk, 2, memoryview(found))
    if first == second:
        assert told is None
        return
    low, high = sorted((first, second))
    assert told is not None
    assert low * UNIT <= told.offset < low * UNIT + 8
    assert told.origin == f"the 4 KiB number {high} of block 2 of chunk {chunk}"


def test_what_is_read_instead_is_named() -> None:
    """An old chunk's, another process', the calibration's, a repeated block, or nothing at all."""
    made = data(dedupe_percent=30)
    other = data(identity="r/alecto/2")
    repeated = next(index for index in range(10) if word(made.block(0, index), 1) >> 32 != 0)
    size = made.block_bytes
    for instead, origin in [
        (bytes(made.block(3, 0)), "the 4 KiB number 0 of block 0 of chunk 3"),
        (bytes(made.block(5, 1)), "the 4 KiB number 0 of block 1 of chunk 5"),
        (bytes(other.block(5, 0)), "no block of this process"),
        (bytes(made.calibration_block(0)), "of the calibration"),
        (bytes(made.block(0, repeated)), "of a repeated block"),
        (bytes(size), "zeros"),
    ]:
        told = made.differs(5, 0, memoryview(instead))
        assert told is not None, origin
        assert told.origin == origin


def test_the_calibration_writes_nothing_that_a_chunk_has() -> None:
    """Its blocks are as unique as any."""
    made = data()
    calibration = {unit for index in range(384) for unit in parts(iter([bytes(made.calibration_block(index))]), UNIT)}
    assert len(calibration) == 6 * MIB // UNIT
    assert not calibration & pieces(made, range(2))
