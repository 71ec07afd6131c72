"""Making worker processes, and reporting their deaths.

The parent keeps a *guardian* process, the guardian keeps a *zygote*, and the zygote makes, reaps
and sweeps up after the workers::

    parent ── guardian (dormant, the zygote's twin) ── zygote ── worker ── whatever jobs start
                                                            └─── worker ── ...

All of them are single-threaded, so a worker is never forked while somebody holds a lock. The zygote
is a child subreaper: what a dead worker leaves behind becomes the zygote's child and is killed
there. When the zygote dies, its workers die with it, the guardian sweeps up and forks the next
zygote from the same snapshot.
"""
