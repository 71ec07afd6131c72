"""The supervisor's event loop."""

from __future__ import annotations

from poolwatch.loop import Loop


def test_closed_loop_is_not_woken() -> None:
    """Whoever is about to wake it when it closes writes into nobody else's descriptor."""
    loop = Loop()
    loop._awake = False  # it sleeps
    loop.close()
    loop.call_soon(list)
