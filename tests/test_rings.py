"""The ring of small results: by itself, and between real workers and a parent that is slow."""

from __future__ import annotations

import os
import pickle
import signal
from typing import Any

import pytest
import ring_work
import work
from helpers import DEADLINE, ProcessWatch, eventually, kill_and_wait, only_worker
from hypothesis import given, settings
from hypothesis import strategies as st

from poolwatch import WorkerLostError
from poolwatch.transport import bulk, codec, ledger
from poolwatch.transport.ledger import HEAD, RING_BYTES, TAIL
from poolwatch.transport.rings import LARGEST, CorruptRingError, RingReader, RingWriter

pytestmark = pytest.mark.timeout(30)


def make_row() -> ledger.Row:
    """A row that is nobody else's."""
    return ledger.Row(memoryview(bytearray(ledger.ROW_BYTES)))


def make_ring() -> tuple[RingWriter, RingReader, ledger.Row]:
    """Both sides of a new ring, and its row."""
    row = make_row()
    reader = RingReader(row)
    return RingWriter(row), reader, row


def marked(number: int, size: int) -> bytes:
    """Bytes that differ from their neighbours and from those of other numbers."""
    return bytes((number * 31 + place) % 251 for place in range(size))


# -- by itself --------------------------------------------------------------------------------


def test_new_ring_is_empty() -> None:
    """Nothing is there before something has been put."""
    _, reader, _ = make_ring()
    assert not reader.has_data()
    assert reader.peek() == b""


def test_peek_does_not_take() -> None:
    """What has been looked at is still there, and in the writer's way, until it is consumed."""
    writer, reader, row = make_ring()
    assert writer.put(b"first")
    assert writer.put(b"second")
    assert reader.peek() == reader.peek() == b"firstsecond"
    assert reader.has_data()
    assert row.fields[TAIL] == 0
    reader.consume(5)
    assert reader.peek() == b"second"
    reader.consume(6)
    assert not reader.has_data()
    assert row.fields[TAIL] == row.fields[HEAD] == 11


@pytest.mark.parametrize("before", [1, 4999, 5000])
def test_bytes_wrap_around_the_end(before: int) -> None:
    """What does not fit behind is continued at the front; exactly fitting needs no front."""
    writer, reader, _ = make_ring()
    for _ in range(4):
        assert writer.put(bytes(LARGEST - before // 4))
    reader.consume(len(reader.peek()))
    data = marked(1, 5000)
    assert writer.put(data)
    assert reader.peek() == data
    reader.consume(5000)
    assert writer.put(b"behind")
    assert reader.peek() == b"behind"


def test_full_ring_refuses_and_keeps_what_it_has() -> None:
    """One byte too many is refused whole; nothing of it is seen, and room is used when made."""
    writer, reader, _ = make_ring()
    for number in range(4):
        assert writer.put(marked(number, LARGEST))
    assert not writer.put(b"x")
    expected = b"".join(marked(number, LARGEST) for number in range(4))
    assert len(expected) == RING_BYTES
    assert reader.peek() == expected
    reader.consume(3)
    assert not writer.put(b"four")
    assert writer.put(b"3in")
    assert reader.peek() == expected[3:] + b"3in"
    reader.consume(RING_BYTES)
    assert reader.peek() == b""


@pytest.mark.parametrize("offset", [0, 1, LARGEST, RING_BYTES - 1])
def test_exactly_full_ring_reads_back(offset: int) -> None:
    """Full is not taken for empty, wherever the ring begins."""
    writer, reader, _ = make_ring()
    for start in range(0, offset, LARGEST):
        assert writer.put(bytes(min(LARGEST, offset - start)))
    reader.consume(offset)
    for number in range(4):
        assert writer.put(marked(number, LARGEST))
    assert not writer.put(b"x")
    assert reader.has_data()
    assert reader.peek() == b"".join(marked(number, LARGEST) for number in range(4))


def test_nothing_is_published_before_it_is_in_place() -> None:
    """HEAD moves by whole puts; a refused one leaves it alone."""
    writer, _, row = make_ring()
    assert writer.put(b"12345")
    assert row.fields[HEAD] == 5
    row.fields[TAIL] = 0
    while writer.put(bytes(LARGEST)):
        pass
    head = row.fields[HEAD]
    assert not writer.put(bytes(LARGEST))
    assert row.fields[HEAD] == head


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, LARGEST)),
        st.tuples(st.just("put"), st.sampled_from([1, LARGEST - 1, LARGEST])),
        st.tuples(st.just("consume"), st.integers(0, RING_BYTES)),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(steps=STEPS)
def test_any_use_reads_back_what_was_put(steps: list[tuple[str, int]]) -> None:
    """Puts and consumes in any order and of any size: the reader sees the bytes in between."""
    writer, reader, row = make_ring()
    expected = b""
    for number, (what, size) in enumerate(steps):
        if what == "put":
            data = marked(number, 1) * size if size > 300 else marked(number, size)
            fits = len(expected) + size <= RING_BYTES
            assert writer.put(data) is fits
            expected += data if fits else b""
        else:
            count = min(size, len(expected))
            reader.consume(count)
            expected = expected[count:]
        assert reader.has_data() is bool(expected)
        assert reader.peek() == expected
        assert row.fields[HEAD] - row.fields[TAIL] == len(expected)


@pytest.mark.parametrize("head", [RING_BYTES + 1, 2**63, 2**64 - 1])
def test_impossible_head_is_corruption(head: int) -> None:
    """A ring cannot hold more than its size; that is said, not read."""
    _, reader, row = make_ring()
    row.fields[HEAD] = head
    assert reader.has_data()
    with pytest.raises(CorruptRingError, match="cannot hold"):
        reader.peek()


def test_head_behind_the_tail_is_corruption() -> None:
    """A HEAD that has gone back promises less than nothing."""
    writer, reader, row = make_ring()
    assert writer.put(b"12345")
    reader.consume(5)
    row.fields[HEAD] = 4
    with pytest.raises(CorruptRingError, match="cannot hold"):
        reader.peek()


def test_closed_row_has_no_data() -> None:
    """A caller may look into the ring of a worker that has just been buried."""
    writer, reader, row = make_ring()
    assert writer.put(b"late")
    row.close()
    assert not reader.has_data()


def test_writer_asks_before_it_uses_a_ring() -> None:
    """A row whose reader could not be woken says so, and the stream takes everything."""
    row = make_row()
    assert not RingWriter(row).usable
    RingReader(row)
    assert RingWriter(row).usable == bool(row.fields[ledger.RING])


# -- between processes ------------------------------------------------------------------------


def record_of(pool: Any) -> Any:
    """The supervisor's record of the only worker, once it is up and uses its ring."""
    while True:
        pid = only_worker(pool)
        (record,) = pool._core.supervisor.crew.workers.values()
        if record.fields[HEAD]:
            return record
        kill_and_wait(pid)  # it was there before its ring was, and does without


def send_ahead(pool: Any, record: Any) -> None:
    """Send the worker all that waits, as if many short jobs had been run. The lock is held."""
    dispatcher = pool._core.dispatcher
    eventually(lambda: record.fields[ledger.FINISHED] == record.sent)
    pool._core.supervisor.intake.take_ring(record)
    dispatcher.average = 0.0
    dispatcher.refill(record)
    assert not dispatcher.backlog


def waiting_bytes(record: Any) -> int:
    """How much lies in a worker's ring."""
    return int(record.fields[HEAD] - record.fields[TAIL])


@pytest.mark.parametrize("size", [0, 100, 10_000])
def test_result_survives_its_worker(make_pool: Any, size: int) -> None:
    """A result that was put before the worker was killed is not lost, and not run again."""
    pool = make_pool(1)
    record = record_of(pool)
    with pool._core.dispatcher.lock:  # nobody reads meanwhile
        job = pool.apply_async(ring_work.patterned, (7, size))
        eventually(lambda: record.fields[ledger.FINISHED] >= job._job.serial > 0)
        assert waiting_bytes(record) > size
        assert not job.ready()
        kill_and_wait(record.pid)
    assert job.get(DEADLINE) == ring_work.patterned(7, size)
    assert job.attempts == 1
    assert pool.apply_async(work.square, (5,)).get(DEADLINE) == 25


def test_results_before_a_suicide_arrive(make_pool: Any) -> None:
    """Many small results, the last job kills its worker: only that one is lost."""
    pool = make_pool(1)
    record = record_of(pool)
    with pool._core.dispatcher.lock:
        jobs = [pool.apply_async(work.square, (number,)) for number in range(64)]
        death = pool.apply_async(os.kill, (record.pid, signal.SIGKILL))
        with ProcessWatch([record.pid]) as watch:
            send_ahead(pool, record)
            watch.assert_gone()
    assert [job.get(DEADLINE) for job in jobs] == [number * number for number in range(64)]
    assert {job.attempts for job in jobs} == {1}
    with pytest.raises(WorkerLostError):
        death.get(DEADLINE)


def fill_the_ring(pool: Any, record: Any, size: int) -> list[Any]:
    """Put a hundred jobs in, and wait until the worker cannot go on. The lock is held."""
    jobs = [pool.apply_async(ring_work.patterned, (number, size)) for number in range(100)]
    send_ahead(pool, record)
    eventually(
        lambda: (
            record.fields[ledger.PHASE] == ledger.SENDING
            and waiting_bytes(record) + size > RING_BYTES - 100
        )
    )
    assert not all(job.ready() for job in jobs)
    return jobs


@pytest.mark.parametrize("size", [1_000, 10_000, LARGEST - 100])
def test_worker_waits_for_a_parent_that_does_not_read(make_pool: Any, size: int) -> None:
    """A full ring holds the worker up; once the parent reads, it goes on and nothing is lost."""
    pool = make_pool(1)
    record = record_of(pool)
    with pool._core.dispatcher.lock:  # nobody reads meanwhile
        jobs = fill_the_ring(pool, record, size)
    for number, job in enumerate(jobs):
        assert job.get(DEADLINE) == ring_work.patterned(number, size)
    assert pool._core.dispatcher.unfinished == 0


def test_worker_that_waited_is_read_without_a_helping_caller(make_pool: Any) -> None:
    """The supervisor alone goes on where nobody read, also when no thread waits for results."""
    pool = make_pool(1)
    record = record_of(pool)
    with pool._core.dispatcher.lock:
        jobs = fill_the_ring(pool, record, 10_000)
    eventually(lambda: all(job.ready() for job in jobs))


def test_worker_killed_while_it_waits_for_room(make_pool: Any) -> None:
    """What was in the ring arrives; only the job whose result never got in is lost."""
    pool = make_pool(1)
    record = record_of(pool)
    size = 10_000
    with pool._core.dispatcher.lock:
        jobs = fill_the_ring(pool, record, size)
        serial = record.fields[ledger.STARTED]
        expected = [job._job.serial == serial for job in jobs]
        kill_and_wait(record.pid)
    assert expected.count(True) == 1
    assert [is_lost(job) for job in jobs] == expected
    for number, job in enumerate(jobs):
        assert job.attempts == 1
        assert expected[number] or job.get(0) == ring_work.patterned(number, size)


def is_lost(job: Any) -> bool:
    """Whether a job ends with the loss of its worker."""
    try:
        job.get(DEADLINE)
    except WorkerLostError:
        return True
    return False


def around(size: int) -> list[int]:
    """A size and its neighbours."""
    return [size - 1, size, size + 1]


SIZES = [20, *around(LARGEST), 20, *around(bulk.THRESHOLD), 20, 100_000]


def test_sizes_at_the_thresholds_are_what_they_seem() -> None:
    """The values used below pickle to the sizes that they are meant to have."""
    for size in SIZES:
        assert len(pickle.dumps(ring_work.pickled_to(1, size), codec.PROTOCOL)) == size


def test_results_of_all_sizes_take_turns(make_pool: Any) -> None:
    """Results just below and above the thresholds go different ways, and all arrive."""
    pool = make_pool(2)
    only_worker(pool)
    pool._core.dispatcher.average = 0.0
    wanted = [(number, SIZES[number % len(SIZES)]) for number in range(8 * len(SIZES))]
    jobs = [pool.apply_async(ring_work.pickled_to, pair) for pair in wanted]
    for pair, job in zip(wanted, jobs, strict=True):
        assert job.get(DEADLINE) == ring_work.pickled_to(*pair)


@pytest.mark.parametrize("seconds", [0.0, 0.0004, 0.0015])
@pytest.mark.parametrize("chunksize", [1, 7, 60])
def test_maps_of_all_sizes_keep_their_order(make_pool: Any, seconds: float, chunksize: int) -> None:
    """Outcomes that leave a chunk through the ring and the stream by turns keep their places."""
    pool = make_pool(2)
    sizes = [8, 20_000, 8, 8, LARGEST - 300, 100_000, 8, 600_000]
    items = [(number, sizes[number % len(sizes)], seconds) for number in range(60)]
    expected = [ring_work.patterned(number, size) for number, size, _ in items]
    assert pool.map_async(ring_work.patterned_item, items, chunksize).get(DEADLINE) == expected


def test_chunk_whose_partial_results_do_not_fit(make_pool: Any) -> None:
    """Outcomes of one chunk fill the ring while nobody reads; order and values are kept."""
    pool = make_pool(1)
    record = record_of(pool)
    items = [(number, 3_900, 0.0008) for number in range(40)]
    with pool._core.dispatcher.lock:
        result = pool.map_async(ring_work.patterned_item, items, 40)
        eventually(lambda: waiting_bytes(record) > RING_BYTES - 8_000)
        assert not result.ready()
    assert result.get(DEADLINE) == [ring_work.patterned(n, size) for n, size, _ in items]


def test_corrupt_ring_costs_its_worker_and_nobody_else(make_pool: Any) -> None:
    """A worker whose row was written over is replaced; the job that it was at is lost."""
    pool = make_pool(1)
    record = record_of(pool)
    with pool._core.dispatcher.lock:
        job = pool.apply_async(work.pid_after, (30.0,))
        eventually(lambda: record.fields[ledger.STARTED] >= job._job.serial > 0)
        record.fields[HEAD] = 2**40
        pool._core._loop.call_soon(lambda: pool._core.supervisor.intake.take_rings([record]))
    with pytest.raises(WorkerLostError):
        job.get(DEADLINE)
    assert only_worker(pool) != record.pid
