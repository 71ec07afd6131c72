"""Where it was measured: processor, kernel, load before, and the versions of all that took part."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import psutil

_DISTRIBUTIONS = {"deadpool": "deadpool-executor"}  # where the name on the index is another


def describe() -> dict[str, str]:
    """Return what is known of the machine, as it is now."""
    memory = psutil.virtual_memory().total / 2**30
    return {
        "processor": _processor(),
        "processors": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} usable",
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def versions(peers: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python, of the peers, and of what carries the payloads."""
    found = {"Python": platform.python_version()}
    modules = {peer.partition(".")[0] for peer in peers} | {"numpy"}
    for module in sorted(modules - sys.stdlib_module_names):
        try:
            found[module] = metadata.version(_DISTRIBUTIONS.get(module, module))
        except metadata.PackageNotFoundError:
            continue  # not installed, or run from its source
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    virtual = any(line.startswith("flags") and " hypervisor" in line for line in lines)
    return (names[0] if names else platform.machine()) + (", virtual machine" if virtual else "")


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "not readable"
