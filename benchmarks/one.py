"""One run: one workload with one peer, in this process; figures as JSON on stdout.

Started by the runner as ``python -m benchmarks.one --peer X --workload Y [--quick]``. The output is
``{"figures": {...}}``, or ``{"problem": "..."}`` when there are none. The process leaves without
tidying up; whoever has started it ends what it leaves.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from typing import Any

from benchmarks.measures.common import Figures
from benchmarks.peers import Hangs, NotOffered, peer_named
from benchmarks.targets import LIMIT
from benchmarks.workloads import Workload, workload_of


def measure(workload: Workload, peer_name: str, quick: bool) -> Figures:
    """Run a workload with a peer, or the bare limit."""
    if peer_name == LIMIT:
        if workload.limit is None:
            raise NotOffered("no such limit")
        return workload.limit(quick)
    peer = peer_named(peer_name)
    if not peer.is_installed:
        raise NotOffered("not installed")
    return workload.measure(peer, quick)


def outcome(workload: Workload, peer_name: str, quick: bool) -> dict[str, Any]:
    """Return what a run has to say."""
    try:
        return {"figures": measure(workload, peer_name, quick)}
    except NotOffered as error:
        return {"problem": f"not offered: {error}"}
    except Hangs as error:
        return {"problem": f"hangs ({error})"}
    except Exception as error:
        logging.getLogger(__name__).debug("failed", exc_info=True)
        return {"problem": f"fails: {type(error).__name__}", "detail": str(error)[:500]}


def main() -> None:
    """Measure and print."""
    logging.disable(logging.CRITICAL)  # a line for every loss would drown the figures
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    workload = workload_of(options.workload)
    signal.alarm(int(workload.deadline) + 5)  # also when nobody is there any more to end this
    print(json.dumps(outcome(workload, options.peer, options.quick)))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
