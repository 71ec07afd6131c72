"""The quota of processor time that control groups grant, read from trees like the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from poolwatch import cgroup, config


def tree(root: Path, groups: str | None, files: dict[str, str]) -> Path:
    """Make a tree: what /proc/self/cgroup says, and files below /sys/fs/cgroup."""
    if groups is not None:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = "0::/user.slice/app.scope\n"
V1 = "12:memory:/other\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        pytest.param(V2, {"user.slice/app.scope/cpu.max": "150000 100000\n"}, 1.5, id="own group"),
        pytest.param(
            V2,
            {
                "user.slice/app.scope/cpu.max": "max 100000\n",
                "user.slice/cpu.max": "200000 100000\n",
            },
            2.0,
            id="only the one around it is bounded",
        ),
        pytest.param(
            V2,
            {
                "user.slice/app.scope/cpu.max": "400000 100000\n",
                "user.slice/cpu.max": "50000 100000\n",
                "cpu.max": "300000 100000\n",
            },
            0.5,
            id="the least counts",
        ),
        pytest.param(V2, {"user.slice/other/cpu.max": "100000 100000"}, None, id="a neighbour's"),
        pytest.param(V2, {"user.slice/app.scope/cpu.max": "max 100000\n"}, None, id="no bound"),
        pytest.param("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5, id="namespace"),
        pytest.param("0::/../../x\n", {"cpu.max": "250000 100000\n"}, 2.5, id="outside of ours"),
        pytest.param(None, {"cpu.max": "250000 100000\n"}, 2.5, id="no /proc"),
        pytest.param("0::/a:b\n", {"a:b/cpu.max": "100000 100000\n"}, 1.0, id="colon in a name"),
        pytest.param(V2, {"user.slice/cpu.max": "nonsense\n"}, None, id="nonsense"),
        pytest.param(V2, {"user.slice/cpu.max": "100000 0\n"}, None, id="no period"),
        pytest.param(V2, {}, None, id="nothing"),
        pytest.param(
            V1,
            {
                "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "300000\n",
                "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
                "cpu,cpuacct/docker/cpu.cfs_quota_us": "100000\n",
                "cpu,cpuacct/docker/cpu.cfs_period_us": "50000\n",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2.0,
            id="version 1, nested",
        ),
        pytest.param(
            V1,
            {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            1.0,
            id="version 1, the tree begins at the container",
        ),
        pytest.param(
            V1,
            {"cpu/other/cpu.cfs_quota_us": "1000", "cpu/other/cpu.cfs_period_us": "100000"},
            None,
            id="version 1, a neighbour's",
        ),
        pytest.param(
            "4:cpu:/a\n0::/b\n",
            {
                "unified/b/cpu.max": "max 100000\n",
                "cpu/a/cpu.cfs_quota_us": "100000\n",
                "cpu/a/cpu.cfs_period_us": "100000\n",
            },
            1.0,
            id="both versions",
        ),
        pytest.param(
            "3:cpuset:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "1000", "cpu/x/cpu.cfs_period_us": "100000"},
            None,
            id="another controller's path",
        ),
    ],
)
def test_quota(tmp_path: Path, groups: str | None, files: dict[str, str], quota: object) -> None:
    """The least quota of the own group and of those around it, and of no other."""
    assert cgroup.cpu_quota(tree(tmp_path, groups, files)) == quota


@pytest.mark.parametrize(("quota", "count"), [(None, 4), (0.1, 1), (1.5, 2), (2.0, 2), (64.0, 4)])
def test_quota_bounds_the_default_size(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, count: int
) -> None:
    """Part of a processor counts as one; no more than the affinity allows."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 4, 6})
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: quota)
    assert config.usable_cpus() == count


def test_quota_of_this_machine_is_read() -> None:
    """Whatever there is here: a positive number, or none."""
    quota = cgroup.cpu_quota()
    assert quota is None or quota > 0
