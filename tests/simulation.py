"""A pool without processes: the real supervisor with a fake clock, launcher, streams and workers.

The fake workers follow the protocol of ``poolwatch.worker`` in single steps, so that a schedule can
put anything between any two of them: a recall between the two looks at VOID, a death between the
store of STARTED and the result, a limit while the result is on its way, a look of the parent
between a result in the ring and the look at BELL.

The other way round, a worker may go on between any two looks of the parent at their shared memory:
the parent's row is a :class:`WatchedFields`. A stream is read only when there is something in it,
as by a real loop, so that a wake-up which nobody gives is one which nobody gets.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from poolwatch.config import PoolOptions
from poolwatch.job import NO_OPTIONS, Job, JobOptions
from poolwatch.policies import FailFast
from poolwatch.supervisor import Supervisor
from poolwatch.timers import Timer, TimerHeap
from poolwatch.transport import codec, frames, ledger
from poolwatch.transport.frames import Frame
from poolwatch.transport.rings import LARGEST, RingWriter
from poolwatch.workers import WorkerProcess

NULL = os.open(os.devnull, os.O_RDONLY)


class FakeLoop:
    """A loop whose clock stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers = TimerHeap()
        self.soon: deque[Callable[[], object]] = deque()

    def time(self) -> float:
        return self.now

    def watch(self, source: object, on_readable: object) -> None:
        pass

    def watch_writable(self, source: object, on_writable: object) -> None:
        pass

    def unwatch(self, source: object) -> None:
        pass

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        return self.timers.add(when, callback)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return self.call_at(self.now + seconds, callback)

    def cancel(self, timer: Timer) -> None:
        timer.cancel()

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.soon.append(callback)

    def settle(self) -> None:
        """Run what is due now."""
        for callback in self.timers.take_due(self.now):
            callback()
        while self.soon:
            self.soon.popleft()()


class FakeDelivery:
    """A delivery thread that runs when it is told to."""

    def __init__(self) -> None:
        self.waiting: deque[Callable[[], object]] = deque()

    def put(self, call: Callable[[], object]) -> None:
        self.waiting.append(call)

    def run(self) -> None:
        while self.waiting:
            self.waiting.popleft()()


class FakeStream:
    """Both directions of one worker's stream."""

    unfinished = False

    def __init__(self) -> None:
        self.broken = False
        self.inbox: deque[Frame] = deque()
        self.outbox: list[Frame] = []

    def send(self, data: bytes, bulk: object = None) -> bool:
        position = 0
        while position < len(data):
            length, kind, flags, _, _, serial, first, second = frames.HEADER.unpack_from(
                data, position
            )
            start = position + frames.HEADER.size
            position = start + length
            self.inbox.append(Frame(kind, flags, serial, first, second, data[start:position], None))
        return True

    def read(self) -> list[Frame]:
        if not self.outbox:
            raise BlockingIOError
        batch, self.outbox = self.outbox, []
        return batch

    def take_only(self, frame: bytes) -> bool:
        kind = frames.HEADER.unpack(frame)[1]
        if all(other.kind == kind for other in self.outbox):
            self.outbox.clear()
            return True
        return False


class WatchedFields:
    """A row's fields as the parent sees them: somebody may act before each access."""

    def __init__(self, fields: memoryview, before_access: Callable[[], None]) -> None:
        self._fields = fields
        self._before_access = before_access

    def __getitem__(self, index: int) -> int:
        self._before_access()
        return self._fields[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._before_access()
        self._fields[index] = value


class WatchedRow:
    """The parent's side of a row.

    Attributes:
        own: the worker's side.
    """

    def __init__(self, before_access: Callable[[], None]) -> None:
        self.own = ledger.Row(memoryview(bytearray(ledger.ROW_BYTES)))
        self.fields = WatchedFields(self.own.fields, before_access)
        self.ring = self.own.ring


@dataclass
class FakeHands:
    """The parent's ends of a fake worker."""

    row: WatchedRow
    stream: FakeStream = field(default_factory=FakeStream)
    crash_fd: int = NULL
    stack_fd: int = NULL

    def close(self) -> None:
        pass


class FakeWorker:
    """Follows the worker's protocol, one step at a time.

    Attributes:
        ran: ids of the jobs whose code it has begun, in order.
    """

    def __init__(self, token: int, hands: FakeHands, world: World) -> None:
        self.token = token
        self.pid = 10_000 + token
        self.stream = hands.stream
        self.fields = hands.row.own.fields
        self.ring = RingWriter(hands.row.own)
        self.world = world
        self.alive = True
        self.booted = False
        self.frame: Frame | None = None  # the job at hand
        self.stage = "idle"
        self.writing: Iterator[None] | None = None  # what it is about to write
        self.streamed = 0  # serial of the job that had a frame in the stream last
        self.ran: list[int] = []

    def step(self) -> None:
        """Do the next thing."""
        if not self.alive:
            return
        if not self.booted:
            self.booted = True
            self.fields[ledger.PHASE] = ledger.IDLE
            self._write(frames.READY, 0, first=self.pid)
        elif self.writing is not None:
            self._go_on_writing()
        else:
            getattr(self, f"_{self.stage}")()

    def _idle(self) -> None:
        if not self.stream.inbox:
            return
        frame = self.stream.inbox.popleft()
        if frame.kind == frames.JOB:
            if frame.serial > self.fields[ledger.VOID]:
                self.frame, self.stage = frame, "taking"
        elif frame.kind == frames.PING:
            self._write(frames.PONG, frame.serial)
        elif frame.kind == frames.LEAVE:
            self._write(frames.LEAVING, 0)
            self.die(0)

    def _taking(self) -> None:
        assert self.frame is not None
        self.fields[ledger.STARTED_AT] = int(self.world.loop.now * 1e9)
        self.fields[ledger.PHASE] = ledger.RUNNING
        self.fields[ledger.STARTED] = self.frame.serial
        self.stage = "looking"
        self.world.taken.add(codec.decode(self.frame.payload, None, False)[1][0])

    def _looking(self) -> None:
        assert self.frame is not None
        if self.frame.serial <= self.fields[ledger.VOID]:
            self.fields[ledger.PHASE] = ledger.IDLE
            self.writing = self._put(frames.DROPPED, self.frame.serial, 0, b"")
            self._go_on_writing()
            return
        job_id = codec.decode(self.frame.payload, None, False)[1][0]
        self.ran.append(job_id)
        self.world.started.setdefault(job_id, []).append(self.token)
        self.stage = "running"

    def _running(self) -> None:
        self.fields[ledger.PHASE] = ledger.SENDING
        self.stage = "sending"

    def _sending(self) -> None:
        assert self.frame is not None
        wall = int(self.world.loop.now * 1e9) - self.fields[ledger.STARTED_AT]
        # Pickle does not mind what comes behind: some results fill the ring, some go round it.
        number = self.ran[-1]
        padding = LARGEST if number % 11 == 5 else 15_000 if number % 3 == 1 else 0
        payload = self.frame.payload + bytes(padding)
        self.writing = self._put(frames.RESULT, self.frame.serial, wall, payload)
        self._go_on_writing()

    def _go_on_writing(self) -> None:
        assert self.writing is not None
        if next(self.writing, "done") == "done":
            self.writing, self.frame, self.stage = None, None, "idle"

    def _put(self, kind: int, serial: int, first: int, payload: bytes) -> Iterator[None]:
        """Do what ``Outbox.send`` does, and what the worker does afterwards, step by step."""
        if len(payload) > LARGEST:
            self._write(kind, serial, first=first, payload=payload)
            self._has_written(kind)
            yield
        else:
            data = frames.pack(kind, payload, serial, first=first)
            while not self.ring.put(data):
                yield from self._ring_the_bell()
                yield
            self._has_written(kind)
            yield
            yield from self._ring_the_bell()
        if kind == frames.RESULT:
            self.fields[ledger.FINISHED] = serial
            self.fields[ledger.PHASE] = ledger.IDLE

    def _has_written(self, kind: int) -> None:
        # A worker whose SIGKILL takes seconds may write what nobody waits for any more.
        if kind == frames.RESULT and not self.world.jobs[self.ran[-1] - 1].state.final:
            self.world.written.add(self.ran[-1])

    def _ring_the_bell(self) -> Iterator[None]:
        if self.fields[ledger.BELL]:
            yield
            self.fields[ledger.BELL] = 0
            yield
            self._write(frames.BELL, 0)
            yield

    def _write(self, kind: int, serial: int, *, first: int = 0, payload: bytes = b"") -> None:
        self.stream.outbox.append(Frame(kind, 0, serial, first, 0, payload, None))

    def signal(self, signum: int, swallow: bool) -> None:
        """Take a signal of the pool: SIGTERM may be swallowed, and acts on its own job only."""
        if signum == signal.SIGKILL:
            self.die(-9)
        elif signum == signal.SIGTERM and self.stage == "running" and not swallow:
            self._be_terminated()

    def _be_terminated(self) -> None:
        if self.frame is not None and self.fields[ledger.TERM_ORDER] == self.frame.serial:
            self.die(-15)

    def die(self, exitcode: int) -> None:
        """End; what was written stays in the stream, and the zygote reports the exit."""
        if self.alive:
            self.alive = False
            self.world.exits.append((self.token, exitcode))


class FakeLauncher:
    """Makes fake workers when the schedule says so."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.asked: list[tuple[int, FakeHands]] = []

    def launch(self, token: int, name: str, notes: object) -> Any:
        hands = FakeHands(WatchedRow(self.world.before_access))
        self.asked.append((token, hands))
        return hands

    def signal(self, token: int, signum: int) -> None:
        self.world.signals.append((token, signum))

    def sweep(self, token: int) -> None:
        pass

    def replace_zygote(self, token: int) -> None:
        pass

    def stop(self) -> None:
        pass

    def is_gone(self) -> bool:
        return True

    def close(self) -> None:
        pass


class World:
    """One pool with everything fake around its supervisor."""

    def __init__(self, workers: int, **options: Any) -> None:
        self.loop = FakeLoop()
        self.delivery = FakeDelivery()
        self.launcher = FakeLauncher(self)
        self.workers: dict[int, FakeWorker] = {}
        self.exits: deque[tuple[int, int]] = deque()
        self.signals: deque[tuple[int, int]] = deque()
        self.started: dict[int, list[int]] = {}  # job id -> workers that ran its code
        self.written: set[int] = set()  # ids of the jobs whose result is in a stream
        self.taken: set[int] = set()  # ids of the jobs that some row has called begun
        self.jobs: list[Job] = []
        self.broken: list[BaseException] = []
        self.meanwhile: deque[tuple[int, Callable[[], object]]] = deque()
        options.setdefault("policy", FailFast())
        self.supervisor = Supervisor(
            PoolOptions(processes=workers, start_method="zygote", **options),
            self.loop,
            self.launcher,  # type: ignore[arg-type]
            self.delivery,  # type: ignore[arg-type]
            self.delivery,  # type: ignore[arg-type]
            lambda error, cause: self.broken.append(error),
            lambda: None,
        )
        self.supervisor.crew.maintain()

    # -- between two looks of the parent ----------------------------------------------------------

    def soon(self, accesses: int, act: Callable[[], object]) -> None:
        """Have something done before the parent touches a row the n-th time from the last such."""
        self.meanwhile.append((accesses, act))

    def before_access(self) -> None:
        """The parent is about to touch a row."""
        if self.meanwhile:
            left, act = self.meanwhile.popleft()
            if left > 0:
                self.meanwhile.appendleft((left - 1, act))
            else:
                act()

    # -- what a schedule may do -------------------------------------------------------------------

    def help(self, looks: int) -> None:
        """A caller waits for a short job, and looks into the rings so many times."""
        dispatcher = self.supervisor.dispatcher
        dispatcher.average = 0.0
        left = iter(range(looks))
        now = int(self.loop.now * 1e9)
        with mock.patch("poolwatch.assist.monotonic_ns", return_value=now):
            self.supervisor.assist.until(lambda: next(left, None) is None, None)

    def come_by(self) -> None:
        """A caller in the middle of many submissions takes in what is there."""
        dispatcher = self.supervisor.dispatcher
        dispatcher._call_for(dispatcher.help_along)

    def submit(self, options: JobOptions = NO_OPTIONS) -> Job:
        """Put a job in."""
        number = len(self.jobs) + 1
        payload = codec.encode((str, (number,), {}))
        job = Job(number, f"job{number}", b"", payload, options, None)
        self.jobs.append(job)
        with self.supervisor.dispatcher.lock:
            self.supervisor.dispatcher.submit(job)
        return job

    def make_worker(self) -> None:
        """The zygote carries out the oldest order."""
        if self.launcher.asked:
            token, hands = self.launcher.asked.pop(0)
            self.workers[token] = FakeWorker(token, hands, self)
            self.supervisor.worker_started(token, self.workers[token].pid, None)

    def refuse_worker(self) -> None:
        """The kernel has no process for the oldest order."""
        if self.launcher.asked:
            self.supervisor.worker_not_started(self.launcher.asked.pop(0)[0], 11)

    def record(self, worker: FakeWorker) -> WorkerProcess | None:
        """Return the supervisor's record of a worker, None when it is buried."""
        return self.supervisor.crew.workers.get(worker.token)

    def read(self, worker: FakeWorker) -> None:
        """The supervisor reads a worker's stream, if there is something in it."""
        record = self.record(worker)
        if record is not None and worker.stream.outbox:
            self.supervisor.intake.on_readable(record)

    def host(self, worker: FakeWorker) -> None:
        """The host to whom a worker's stream is lent does the same, as far as it may."""
        record = self.record(worker)
        if record is not None and worker.stream.outbox:
            with self.supervisor.dispatcher.lock:
                taken = self.supervisor.intake.take_hosted(record)
            if not taken:
                self.read(worker)

    def report_exit(self) -> None:
        """The oldest exit report reaches the supervisor."""
        if self.exits:
            token, exitcode = self.exits.popleft()
            self.supervisor.worker_exited(token, exitcode, 0)
            self.supervisor._join_exited_workers()

    def deliver_signal(self, swallow: bool = False) -> None:
        """The oldest signal of the pool reaches its worker."""
        if self.signals:
            token, signum = self.signals.popleft()
            self.workers[token].signal(signum, swallow)

    def pass_time(self, seconds: float) -> None:
        """Move the clock."""
        self.loop.now += seconds
        self.loop.settle()

    def grow(self) -> None:
        """One worker more."""
        self.supervisor.sizing.grow(1)

    def shrink(self) -> None:
        """One worker fewer, if that may be."""
        if self.supervisor.sizing.most > 1:
            self.supervisor.sizing.shrink(1)

    def restart(self) -> None:
        """All workers are replaced."""
        self.supervisor.sizing.restart(self.launcher, lambda: None)  # type: ignore[arg-type]

    # -- the end of a schedule -----------------------------------------------------------------

    def run_out(self, rounds: int = 3000) -> None:
        """Let everybody do their work until nothing is unfinished."""
        for _ in range(rounds):
            dispatcher = self.supervisor.dispatcher
            if not dispatcher.unfinished and not dispatcher.arrivals:
                break
            self.go_round()
        self.delivery.run()

    def go_round(self) -> None:
        """Everybody does a little, and some time passes."""
        self.pass_time(0.05)
        self.make_worker()
        while self.signals:  # a job is given up when its worker does not die within seconds
            self.deliver_signal()
        self.report_exit()
        for worker in list(self.workers.values()):
            worker.step()
            self.read(worker)
        self.delivery.run()
