"""Names of processes in ``ps`` and ``top``, where setproctitle is installed (extra ``title``)."""

from __future__ import annotations

_missing = False  # so that workers which are forked from here do not look for it again


def set_title(pool: str, role: str) -> None:
    """Call this process ``poolwatch: <pool> <role>``.

    Args:
        pool: name of the pool.
        role: what this process is in it.
    """
    global _missing
    if _missing:
        return
    try:
        import setproctitle
    except ImportError:
        _missing = True
        return
    setproctitle.setproctitle(f"poolwatch: {pool} {role}")
