"""Waiting for the last tasks at a warm shutdown, in the hub's thread, which does not loop any more.

The hub's timers go on firing meanwhile (the broker wants its heartbeats), and acknowledgements are
sent. Nothing else of the hub runs: it could hand deliveries to the pool that is being closed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.utils.log import get_logger
from kombu.message import Message

from poolwatch.integrations.celery.mailbox import Mailbox

logger = get_logger("celery.pool")

_LONGEST_PAUSE = 0.5  # seconds between two looks at the hub's timers
_ACKS = ("ack_log_error", "reject_log_error")


def drain(mailbox: Mailbox, hub: Any, is_over: Callable[[float], bool]) -> None:
    """Do what the hub must still do until everything is over.

    Args:
        mailbox: where the pool's calls come in.
        hub: kombu's; None where there is none.
        is_over: waits no longer than so many seconds, and tells whether it is over.
    """
    while not is_over(0.0):
        mailbox.wait(min(_LONGEST_PAUSE, _fire_timers(hub)))
        _guarded(mailbox.empty)
        _send_acknowledgements(hub)
    _guarded(mailbox.empty)
    _send_acknowledgements(hub)


def _fire_timers(hub: Any) -> float:
    """Fire what is due; return the seconds until the next."""
    if hub is None:
        return _LONGEST_PAUSE
    due = _guarded(hub.fire_timers)
    return _LONGEST_PAUSE if due is None else float(due)


def _send_acknowledgements(hub: Any) -> None:
    """Send the acknowledgements that wait for the hub's next round; leave everything else."""
    if hub is None:
        return
    waiting = hub._pop_ready()
    while waiting:
        # One at a time: what another call adds to this very set meanwhile must not be lost.
        call = waiting.pop()
        if _is_acknowledgement(call):
            _guarded(call)
        else:
            hub.call_soon(call)


def _is_acknowledgement(call: Any) -> bool:
    """True for the promise of a message's acknowledgement or rejection."""
    function = getattr(call, "fun", None)
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", None)
    return isinstance(owner, Message) and name in _ACKS


def _guarded(call: Callable[[], Any]) -> Any:
    """Call something; an error must not keep the rest from ending."""
    try:
        return call()
    except Exception as error:
        logger.warning("while the pool was being stopped: %r", error, exc_info=True)
        return None
