"""``TaskPool`` by itself: what it tells Celery, in which order, and in which thread."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faults
import pytest
import work
from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.exceptions import (
    ImproperlyConfigured,
    TaskError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.worker import state as worker_state
from helpers import DEADLINE, Stage, bounded, eventually
from kombu.asynchronous import Hub
from kombu.asynchronous.semaphore import LaxBoundedSemaphore

from poolwatch import Quarantine, RetryLost, exceptions
from poolwatch.integrations.celery import TaskPool
from poolwatch.integrations.celery.errors import cause_of, signal_number, translated
from poolwatch.integrations.celery.mailbox import Mailbox
from poolwatch.integrations.celery.options import own_options, sensible_soft
from poolwatch.integrations.celery.slots import Slots

pytestmark = pytest.mark.timeout(40)


class Told:
    """What a task's callbacks were told, in order, and in which threads."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.threads: set[int] = set()
        self.on_accept: Callable[[int], object] = lambda pid: None

    def _note(self, *call: Any) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append(call)

    def accept(self, pid: int, when: float) -> None:
        self._note("accept", pid)
        assert 0 <= time.monotonic() - when < 60
        self.on_accept(pid)

    def success(self, value: Any) -> None:
        self._note("success", value)

    def error(self, info: ExceptionInfo) -> None:
        self._note("error", info)

    def timeout(self, soft: bool, timeout: float) -> None:
        self._note("timeout", soft, timeout)

    @property
    def kinds(self) -> list[str]:
        return [call[0] for call in self.calls]

    @property
    def over(self) -> bool:
        return "success" in self.kinds or "error" in self.kinds

    @property
    def raised(self) -> BaseException:
        (info,) = [call[1] for call in self.calls if call[0] == "error"]
        exception = info.exception
        assert info.traceback
        assert info.exc_info[0] is type(getattr(exception, "exc", exception))
        return getattr(exception, "exc", exception)


class Rig:
    """A pool, and the loop that a worker would run."""

    def __init__(self, loop: str, limit: int, **options: Any) -> None:
        self.hub = Hub() if loop == "event" else None
        self.app = Celery("rig", set_as_current=False, broker="memory://")
        self.app.conf.update(options.pop("conf", {}))
        self.semaphore = LaxBoundedSemaphore(limit) if self.hub else None
        self.pool = TaskPool(
            limit,
            app=self.app,
            initargs=(self.app, "rig@test"),
            threads=self.hub is None,
            semaphore=self.semaphore,
            putlocks=options.pop("putlocks", False),
            lost_worker_timeout=10.0,
            max_restarts=100,
            allow_restart=True,
            sched_strategy=None,
            **options,
        )
        self.pool.start()
        if self.hub is not None:
            self.pool.register_with_event_loop(self.hub)

    def apply(self, target: Callable[..., Any], *args: Any, **options: Any) -> tuple[Told, Any]:
        told = Told()
        handle = self.pool.apply_async(
            target,
            args,
            accept_callback=told.accept,
            callback=told.success,
            error_callback=told.error,
            timeout_callback=told.timeout,
            **options,
        )
        return told, handle

    def run_until(self, condition: Callable[[], object]) -> None:
        """Run the loop, where there is one, until the condition holds."""
        if self.hub is None:
            eventually(condition)
            return
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end
            self.hub.timer.call_after(0.02, lambda: None)
            self.hub.run_once()

    def end(self, told: Told) -> Told:
        self.run_until(lambda: told.over)
        return told


@pytest.fixture
def make(nothing_left_over: object) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(loop: str = "event", limit: int = 1, **options: Any) -> Rig:
        rigs.append(Rig(loop, limit, **options))
        return rigs[-1]

    yield make
    worker_state.should_terminate = worker_state.should_stop = None
    for rig in rigs:
        bounded(rig.pool.terminate)
        if rig.hub is not None:
            rig.hub.close()


LOOPS = pytest.mark.parametrize("loop", ["event", "blocking"])


@LOOPS
def test_a_task_is_accepted_and_succeeds(make: Any, loop: str) -> None:
    """In the hub's thread, where there is a hub; anywhere but there otherwise."""
    rig = make(loop)
    told = rig.end(rig.apply(work.square, 7)[0])
    assert told.kinds == ["accept", "success"]
    assert told.calls[0][1] in rig.pool.info["processes"]
    assert told.calls[1][1] == 49
    assert (told.threads == {threading.get_ident()}) is (loop == "event")


@LOOPS
def test_an_error_comes_as_celery_takes_it(make: Any, loop: str) -> None:
    rig = make(loop)
    told = rig.end(rig.apply(work.fail, "mine")[0])
    assert told.kinds == ["accept", "error"]
    assert type(told.raised) is ValueError


@LOOPS
def test_a_loss_is_celerys_own_class_with_our_postmortem(make: Any, loop: str) -> None:
    rig = make(loop)
    told = rig.end(rig.apply(os.abort)[0])
    error = told.raised
    assert type(error) is WorkerLostError
    assert told.kinds == ["accept", "error"]
    assert error.postmortem.signal == signal.SIGABRT
    assert error.exitcode == -signal.SIGABRT
    assert str(error).startswith("Worker exited prematurely: signal 6 (SIGABRT)")
    assert rig.end(rig.apply(work.square, 2)[0]).kinds == ["accept", "success"]


@LOOPS
def test_a_hard_limit_tells_the_error_before_the_timeout(
    make: Any, loop: str, stage: Stage
) -> None:
    """With the limit as Celery gave it, and with where the task was."""
    rig = make(loop)
    told, _ = rig.apply(faults.hang_in_sum, stage.bell, timeout=0.3, soft_timeout=0.2)
    rig.run_until(lambda: len(told.calls) == 4)
    assert told.kinds == ["accept", "timeout", "error", "timeout"]
    assert told.calls[1] == ("timeout", True, 0.2)
    assert told.calls[3] == ("timeout", False, 0.3)
    assert type(told.raised) is TimeLimitExceeded
    assert told.raised.args[0] == 0.3
    assert "in hang_in_sum" in told.raised.args[1]


@LOOPS
def test_limits_of_the_worker_hold_where_the_task_has_none(
    make: Any, loop: str, stage: Stage
) -> None:
    rig = make(loop, timeout=0.3, soft_timeout=9)
    told = rig.end(rig.apply(faults.hang, stage.bell, timeout=None, soft_timeout=None)[0])
    assert type(told.raised) is TimeLimitExceeded


@LOOPS
def test_the_handle_is_weak_and_kept(make: Any, loop: str, stage: Stage) -> None:
    """Celery holds it by a weak reference only."""
    rig = make(loop)
    told, handle = rig.apply(work.ring_and_wait, stage.bell, stage.gate, correlation_id="7")
    weak = weakref.ref(handle)
    del handle
    gc.collect()
    stage.heard()
    assert weak() is not None
    assert weak().correlation_id == "7"
    assert weak().terminate("TERM")
    rig.end(told)
    assert type(told.raised) is Terminated
    assert told.raised.args == (signal.SIGTERM,)
    told.calls.clear()
    eventually(lambda: gc.collect() >= 0 and weak() is None)  # a timer may hold it for a moment


@LOOPS
def test_a_task_that_has_ended_leaves_no_garbage(make: Any, loop: str) -> None:
    """Nothing of it waits for the collector."""
    rig = make(loop)
    rig.end(rig.apply(work.square, 1)[0])
    gc.collect()
    gc.disable()
    try:
        weak = []
        for target, argument in ((work.square, 2), (work.fail, "mine"), (faults.exit_at_once, 3)):
            told, handle = rig.apply(target, argument)
            weak.append(weakref.ref(handle))
            del handle
            rig.end(told)
            del told
        rig.end(rig.apply(work.square, 3)[0])
        eventually(lambda: [one() for one in weak] == [None] * 3)
    finally:
        gc.enable()


@LOOPS
def test_a_task_can_be_ended_when_it_is_accepted(make: Any, loop: str, stage: Stage) -> None:
    """Its callback calls back into the pool: a task that was revoked before it began."""
    rig = make(loop)
    told = Told()
    told.on_accept = lambda pid: rig.pool.terminate_job(pid, signal.SIGKILL)
    rig.pool.apply_async(
        faults.hang, (stage.bell,), accept_callback=told.accept, error_callback=told.error
    )
    rig.end(told)
    assert type(told.raised) is Terminated
    assert told.raised.exitcode == -signal.SIGKILL


@LOOPS
def test_a_task_that_waits_can_be_ended(make: Any, loop: str, stage: Stage) -> None:
    """It never begins; the task that runs goes on."""
    rig = make(loop)
    running, _ = rig.apply(work.ring_and_wait, stage.bell, stage.gate)
    stage.heard()
    told, handle = rig.apply(work.square, 1)
    handle.terminate(signal.SIGTERM)
    rig.end(told)
    assert told.kinds == ["error"]
    assert told.raised.args == (0,)
    stage.let_go()
    assert rig.end(running).kinds == ["accept", "success"]


def test_a_signal_never_hits_a_neighbour(make: Any, stage: Stage) -> None:
    """A process id that Celery knows of a task may be another task's by now."""
    rig = make("event")
    first, _ = rig.apply(work.ring_and_wait, stage.bell, stage.gate)
    pid = int(stage.heard())
    rig.run_until(lambda: first.kinds == ["accept"])
    second, _ = rig.apply(work.ring_and_wait, stage.bell, stage.gate)
    stage.let_go()
    assert int(stage.heard()) == pid  # the second runs, and Celery has not been told
    assert first.kinds == ["accept"]
    rig.pool.terminate_job(pid, signal.SIGKILL)
    stage.let_go()
    assert rig.end(first).kinds == ["accept", "success"]
    assert rig.end(second).kinds == ["accept", "success"]


@LOOPS
def test_a_task_is_interrupted_as_by_its_soft_limit(make: Any, loop: str, stage: Stage) -> None:
    """revoke(terminate=True, signal="SIGUSR1"), as with prefork."""
    rig = make(loop, conf={"worker_pool_options": {"terminate_grace": 30.0}})
    told, handle = rig.apply(catch_soft_of_celery, stage.bell)
    stage.heard()
    handle.terminate("SIGUSR1")
    assert rig.end(told).calls[-1] == ("success", "cleaned up")


@LOOPS
def test_the_same_signal_is_sent_once(make: Any, loop: str, stage: Stage) -> None:
    """Celery orders each termination twice; what the task does about the first goes on."""
    rig = make(loop, conf={"worker_pool_options": {"terminate_grace": 30.0}})
    told, handle = rig.apply(catch_soft_of_celery, stage.bell, stage.gate)
    stage.heard()
    assert handle.terminate("SIGUSR1")
    stage.heard()
    assert handle.terminate("SIGUSR1")
    time.sleep(0.1)  # a second one would be there by now
    stage.let_go()
    assert rig.end(told).calls[-1] == ("success", "cleaned up")


def catch_soft_of_celery(bell: str, gate: str | None = None) -> str:
    from celery.exceptions import SoftTimeLimitExceeded

    try:
        faults.hang(bell)
    except SoftTimeLimitExceeded:
        if gate is not None:
            work.ring_and_wait(bell, gate)
        return "cleaned up"


@LOOPS
def test_what_does_not_pickle_fails_and_is_accepted_first(make: Any, loop: str) -> None:
    """So that its message is acknowledged."""
    rig = make(loop)
    told = rig.end(rig.apply(work.echo, threading.Lock())[0])
    assert told.kinds == ["accept", "error"]
    assert type(told.raised) is TypeError
    told = rig.end(rig.apply(threading.Lock)[0])
    assert told.kinds == ["accept", "error"]
    assert isinstance(told.raised, exceptions.MaybeEncodingError)


@LOOPS
def test_sys_exit_is_a_loss(make: Any, loop: str) -> None:
    """As with prefork, where the process exits; here only the task ends."""
    rig = make(loop)
    told = rig.end(rig.apply(faults.sys_exit, 3)[0])
    assert type(told.raised) is WorkerLostError
    assert "exitcode 3" in str(told.raised)
    assert rig.pool.info["poolwatch"]["losses"] == {"SystemExit": 1}


@LOOPS
def test_wrong_limits_fail_the_task_only(make: Any, loop: str) -> None:
    """They come in the message of whoever sends the task."""
    rig = make(loop)
    told = rig.end(rig.apply(work.square, 1, timeout="soon")[0])
    assert type(told.raised) is TypeError
    told = rig.end(rig.apply(work.square, 1, timeout=3, soft_timeout="soon")[0])
    assert type(told.raised) is TypeError
    told = rig.end(rig.apply(work.square, 1, timeout=-1)[0])
    assert type(told.raised) is ValueError


@LOOPS
def test_a_policy_may_have_a_lost_task_begun_again(make: Any, loop: str, tmp_path: Path) -> None:
    """Celery is told of the second process too."""
    rig = make(loop, conf={"worker_pool_options": {"lost_worker_policy": RetryLost(2)}})
    path = tmp_path / "begun"
    told = rig.end(rig.apply(faults.die_until, str(path), 1)[0])
    assert told.kinds == ["accept", "accept", "success"]
    first, second = (call[1] for call in told.calls[:2])
    assert first != second
    assert rig.pool.terminate_job(second) is False
    path.unlink()


@LOOPS
def test_a_refused_task_is_accepted_first(make: Any, loop: str) -> None:
    """So that its message is acknowledged: it would be delivered again and again.

    Nor is it a loss for Celery, which rejects the message with reject_on_worker_lost.
    """
    options = {"lost_worker_policy": Quarantine(after=1)}
    rig = make(loop, conf={"worker_pool_options": options})
    for kind in (WorkerLostError, TaskError):
        told = rig.end(rig.apply(os.abort)[0])
        assert told.kinds == ["accept", "error"]
        assert type(told.raised) is kind
    assert rig.pool.info["poolwatch"]["losses"] == {"SIGABRT": 1, "refused": 1}


# -- the hub ----------------------------------------------------------------------------------


def test_the_hub_may_forget_us(make: Any, stage: Stage) -> None:
    """It does so when the connection is lost; registering again is all that is needed."""
    rig = make("event")
    told, _ = rig.apply(work.ring_and_wait, stage.bell, stage.gate)
    stage.heard()
    readers = len(rig.hub.readers)
    for _ in range(3):
        rig.hub.reset()
        rig.hub._loop = None
        rig.pool.register_with_event_loop(rig.hub)
        rig.pool.register_with_event_loop(rig.hub)
    assert len(rig.hub.readers) == readers
    stage.let_go()
    assert rig.end(told).kinds == ["accept", "success"]


def test_an_end_does_not_overtake_the_acceptance(make: Any) -> None:
    """They come in by different ways; Celery is told in order, and once."""
    rig = make("event", limit=2)
    told = [rig.apply(work.square, n)[0] for n in range(300)]
    rig.run_until(lambda: all(one.over for one in told))
    assert {tuple(one.kinds) for one in told} == {("accept", "success")}


def test_what_a_callback_raises_is_logged(make: Any, caplog: Any) -> None:
    """Unless it is told to propagate, to end the loop; what comes after it is not lost."""
    rig = make("event")
    told = Told()
    rig.pool.apply_async(
        work.square, (1,), accept_callback=told.accept, callback=lambda value: 1 / 0
    )
    other, _ = rig.apply(work.square, 2)
    rig.end(other)
    assert "Pool callback raised exception: ZeroDivisionError" in caplog.text

    def lose_connection(value: int) -> None:
        raise ConnectionError("lost")

    rig.pool.callbacks_propagate = (ConnectionError,)
    rig.pool.apply_async(work.square, (1,), callback=lose_connection)
    last, _ = rig.apply(work.square, 3)
    with pytest.raises(ConnectionError):
        rig.end(last)
    rig.hub._loop = None
    assert rig.end(last).kinds == ["accept", "success"]


def test_a_task_ends_although_its_acceptance_raised(make: Any) -> None:
    """What is propagated ends the loop; the unit of the semaphore is given back all the same."""
    rig = make("event")
    rig.pool.callbacks_propagate = (ConnectionError,)

    def lose_connection(pid: int) -> None:
        raise ConnectionError("lost")

    told: list[Told] = []

    def hand_over() -> None:
        told.append(Told())
        told[-1].on_accept = lose_connection
        rig.pool.apply_async(
            work.square, (3,), accept_callback=told[-1].accept, callback=told[-1].success
        )

    for _ in range(3):
        rig.semaphore.acquire(hand_over)
    raised = 0
    while len(told) < 3 or not told[-1].over:
        try:
            rig.run_until(lambda: len(told) == 3 and told[-1].over)
        except ConnectionError:
            raised += 1
            rig.hub._loop = None
    assert raised == 3
    assert rig.semaphore.value == 1


def test_units_of_the_semaphore_come_back(make: Any, stage: Stage) -> None:
    """Once for each task, whatever its end is; the next one is handed over at once."""
    rig = make("event", limit=2)
    ends: list[Told] = []

    def hand_over(target: Any, *args: Any) -> None:
        ends.append(rig.apply(target, *args)[0])

    for target in (os.abort, work.fail, threading.Lock, faults.sys_exit, work.square) * 4:
        args = () if target in (os.abort, threading.Lock) else (1,)
        rig.semaphore.acquire(hand_over, target, *args)
    assert len(ends) == 2
    rig.run_until(lambda: len(ends) == 20 and all(told.over for told in ends))
    assert rig.semaphore.value == 2


def test_flush_drops_what_has_not_begun(make: Any, stage: Stage) -> None:
    """After the connection was lost, when Celery has taken back all units of the semaphore."""
    rig = make("event", limit=2)
    running = [rig.apply(work.ring_and_wait, stage.bell, stage.gate)[0] for _ in range(2)]
    stage.heard_pids(2)
    waiting = [rig.apply(work.square, n)[0] for n in range(3)]
    rig.semaphore.clear()
    rig.pool.flush()
    assert rig.semaphore.value == 0
    stage.let_go(2)
    for told in running:
        assert rig.end(told).kinds == ["accept", "success"]
    assert rig.semaphore.value == 2
    assert [told.calls for told in waiting] == [[], [], []]
    assert rig.end(rig.apply(work.square, 1)[0]).over


def test_flush_in_the_blocking_loop(make: Any, stage: Stage) -> None:
    rig = make("blocking")
    running, _ = rig.apply(work.ring_and_wait, stage.bell, stage.gate)
    stage.heard()
    waiting, _ = rig.apply(work.square, 1)
    rig.pool.flush()
    stage.let_go()
    assert rig.end(running).kinds == ["accept", "success"]
    assert rig.end(rig.apply(work.square, 1)[0]).over
    assert waiting.calls == []


# -- the end ----------------------------------------------------------------------------------


@LOOPS
def test_stop_drains(make: Any, loop: str, stage: Stage) -> None:
    """All callbacks have been called when it returns; it may be called again; nothing is taken."""
    rig = make(loop)
    told = [rig.apply(work.square, n)[0] for n in range(20)]
    rig.pool.close()
    assert rig.apply(work.square, 1)[1] is None
    rig.pool.stop()
    rig.pool.stop()
    assert all(one.kinds == ["accept", "success"] for one in told)
    assert rig.apply(work.square, 1)[1] is None
    rig.pool.terminate()


def test_timers_and_acknowledgements_go_on_while_it_drains(make: Any, stage: Stage) -> None:
    """Of the hub; but nothing else of it is run."""
    from kombu.message import Message

    rig = make("event")
    rig.apply(work.ring_and_wait, stage.bell, stage.gate)
    stage.heard()
    done: list[str] = []

    class Acked(Message):
        def ack_log_error(self, *args: Any, **kwargs: Any) -> None:
            done.append("ack")
            stage.let_go()

    rig.hub.call_later(0.05, done.append, "timer")
    rig.hub.call_soon(done.append, "delivery")
    rig.hub.call_soon(Acked().ack_log_error)
    rig.pool.stop()
    assert done[0] == "ack"
    assert "delivery" not in done


@LOOPS
def test_terminate_is_quick_and_silent(make: Any, loop: str, stage: Stage) -> None:
    """Nobody is called back, so nothing is acknowledged."""
    rig = make(loop)
    told, _ = rig.apply(faults.hang_deaf, stage.bell)
    stage.heard()
    rig.run_until(lambda: told.kinds == ["accept"])
    began = time.monotonic()
    rig.pool.terminate()
    assert time.monotonic() - began < 5
    assert told.kinds == ["accept"]
    rig.pool.stop()


@LOOPS
def test_a_cold_shutdown_in_a_signal_handler(make: Any, loop: str, stage: Stage) -> None:
    """It ends what runs, leaves the rest to the broker, and stops, in the middle of anything."""
    rig = make(loop)
    running, handle = rig.apply(work.ring_and_wait, stage.bell, stage.gate)
    stage.heard()
    waiting, _ = rig.apply(work.square, 1)
    stopped: list[int] = []

    def shut_down(signum: int, frame: object) -> None:
        handle.terminate(signal.SIGTERM)
        worker_state.should_terminate = True
        rig.pool.stop()
        stopped.append(signum)

    before = signal.signal(signal.SIGUSR2, shut_down)
    try:
        threading.Timer(0.2, signal.raise_signal, [signal.SIGUSR2]).start()
        rig.pool.stop()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert stopped
    assert waiting.calls == []
    assert running.kinds in (["accept", "error"], ["error"], [])


@LOOPS
def test_a_cold_shutdown_ends_what_celery_does_not_know_to_run(
    make: Any, loop: str, stage: Stage
) -> None:
    """The task begins while Celery ends those of whose beginning it has been told."""
    rig = make(loop)
    told, _ = rig.apply(work.ring_and_wait, stage.bell, stage.gate)
    stage.heard()  # the hub has not run since
    worker_state.should_terminate = True
    bounded(rig.pool.stop)
    if loop == "event":
        assert told.kinds == []  # nothing was acknowledged
    else:
        assert told.kinds in (["accept", "error"], [])


@LOOPS
def test_a_cold_shutdown_tells_of_what_has_succeeded(make: Any, loop: str) -> None:
    """Also when Celery has not heard of its beginning: it would be delivered and run again."""
    rig = make(loop)
    told, handle = rig.apply(work.square, 3)
    eventually(lambda: handle.job is None or handle.job.state.final)  # the hub has not run since
    worker_state.should_terminate = True
    bounded(rig.pool.stop)
    assert told.kinds == ["accept", "success"]


@LOOPS
def test_stop_never_waits_for_what_it_has_interrupted(make: Any, loop: str, stage: Stage) -> None:
    """In a signal handler that comes in the middle of the pool's own bookkeeping."""
    rig = make(loop)
    told, _ = rig.apply(work.ring_and_wait, stage.bell, stage.gate)
    stage.heard()
    with rig.pool._pool._core.dispatcher.lock:
        rig.pool.stop()
        rig.pool.terminate_job(12345)
        assert rig.apply(work.square, 1)[1] is None
    stage.let_go()
    rig.pool.stop()
    assert told.kinds == ["accept", "success"]


@LOOPS
def test_a_pool_that_ends_is_not_resized(make: Any, loop: str) -> None:
    """And nothing is raised: it would end the worker where Celery's autoscaler is a thread."""
    rig = make(loop, limit=2)
    rig.pool.close()
    rig.pool.grow(1)
    rig.pool.shrink(1)
    rig.pool.stop()
    rig.pool.grow(1)
    assert rig.pool.num_processes == 2


# -- the parts --------------------------------------------------------------------------------


def test_slots_follow_the_size() -> None:
    """Kombu's own grow and shrink lose count while tasks wait."""
    semaphore = LaxBoundedSemaphore(2)
    slots, begun = Slots(semaphore), []
    for n in range(8):
        semaphore.acquire(begun.append, n)
    assert begun == [0, 1]
    slots.grow(1)
    assert begun == [0, 1, 2]
    slots.shrink(2)
    slots.release()
    slots.release()
    assert begun == [0, 1, 2]
    slots.release()
    assert begun == [0, 1, 2, 3]
    slots.shrink(1)
    slots.grow(2)
    assert begun == [0, 1, 2, 3, 4]
    for _ in range(5):
        slots.release()
    assert begun == list(range(8))
    assert semaphore.value == 2


def test_slots_without_a_semaphore() -> None:
    slots = Slots(None)
    slots.grow(1)
    slots.shrink(1)
    slots.release()
    slots.recount(3)


def test_slots_after_a_lost_connection() -> None:
    """Kombu's clear() gives back units that are out; each comes back once more."""
    semaphore = LaxBoundedSemaphore(2)
    slots, begun = Slots(semaphore), []
    semaphore.acquire(begun.append, 0)
    semaphore.acquire(begun.append, 1)
    slots.shrink(1)
    semaphore.clear()
    slots.recount(2)
    semaphore.acquire(begun.append, 2)
    slots.release()
    assert begun == [0, 1]
    slots.release()
    assert begun == [0, 1, 2]


def test_the_mailbox_keeps_order_and_loses_nothing() -> None:
    """A call that raises leaves those behind it for the next time, and rings for them."""
    box, seen = Mailbox(), []
    try:
        box.post(lambda: seen.append(1))
        box.post(lambda: 1 / 0)
        box.post(lambda: seen.append(2))
        with pytest.raises(ZeroDivisionError):
            box.empty()
        assert seen == [1]
        box.wait(DEADLINE)
        box.empty()
        box.empty()
        assert seen == [1, 2]
    finally:
        box.close()
        box.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"memory": 1}, "there is no 'memory'"),
        ({"processes": 3}, "'processes' is said by worker_concurrency"),
        ({"synack": True}, "there is no 'synack'"),
        ([1], "must be a dict of options"),
    ],
)
def test_wrong_options_are_named(options: Any, text: str) -> None:
    app = Celery("options", set_as_current=False)
    app.conf.worker_pool_options = options
    with pytest.raises(ImproperlyConfigured, match=text):
        TaskPool(1, app=app)


@pytest.mark.parametrize("option", ["terminate_grace", "context"])
def test_a_wrong_value_is_named(option: str) -> None:
    app = Celery("options", set_as_current=False)
    app.conf.worker_pool_options = {option: ["long"]}
    with pytest.raises(ImproperlyConfigured, match=option):
        TaskPool(1, app=app).start()


def test_options_are_found_with_a_prefix() -> None:
    """As Django projects have it."""

    class Settings:
        CELERY_WORKER_POOL_OPTIONS = {"name": "crawl"}  # noqa: RUF012

    app = Celery("options", set_as_current=False)
    app.config_from_object(Settings, namespace="CELERY")
    assert own_options(app) == {"name": "crawl"}


def test_limits_that_cross() -> None:
    assert sensible_soft(5, 3) is None
    assert sensible_soft(3, 5) == 3
    assert sensible_soft(3, None) == 3
    assert sensible_soft(0, 5) is None


def test_signals_go_by_name_or_number() -> None:
    assert signal_number(None) == signal_number("term") == signal_number(15) == signal.SIGTERM
    with pytest.raises(ValueError, match="SIGNOT"):
        signal_number("SIGNOT")
    with pytest.raises(ValueError, match="999"):
        signal_number(999)


def test_what_is_no_signal_ends_no_task(make: Any, stage: Stage) -> None:
    """It comes from whoever sends control commands."""
    rig = make()
    told, handle = rig.apply(work.ring_and_wait, stage.bell, stage.gate)
    pid = int(stage.heard())
    rig.run_until(lambda: told.kinds == ["accept"])
    for order in (handle.terminate, lambda number: rig.pool.terminate_job(pid, number)):
        for number in (0, 999):
            with pytest.raises(ValueError, match=f"not {number}"):
                order(number)
    stage.let_go()
    assert rig.end(told).kinds == ["accept", "success"]


def test_each_loss_has_a_cause() -> None:
    """And stands for the exception of Celery's that does what is documented for it."""
    lost = exceptions.WorkerLostError("text", exitcode=-9)
    memory = exceptions.MemoryLimitExceeded("too much")
    limit = exceptions.TimeLimitExceeded("long", timeout=3.0)
    assert [cause_of(error) for error in (lost, memory, limit, ValueError())] == [
        "SIGKILL",
        "memory limit",
        "time limit",
        None,
    ]
    assert type(translated(memory, None)) is WorkerLostError
    assert translated(limit, 3).args == (3, "long")
    assert type(translated(exceptions.BootError("no"), None)) is WorkerLostError
    own = KeyError("mine")
    assert translated(own, None) is own
