"""How many cores a process may use, read from trees as the kernel lays them out."""

import os
from pathlib import Path

import pytest

from app.config.cpus import usable_cpus

CGROUP = "proc/self/cgroup"
V1 = "12:pids:/kubepods/a\n3:cpu,cpuacct:/kubepods/a\n"

# What stands in which file, and how many of 8 cores may be used then.
TREES: dict[str, tuple[dict[str, str], int]] = {
    "no control groups": ({}, 8),
    "v2 without a quota": ({CGROUP: "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 8),
    "v2 in its own namespace": ({CGROUP: "0::/", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3),
    "v2 other period": ({CGROUP: "0::/", "sys/fs/cgroup/cpu.max": "100000 20000"}, 5),
    "v2 half a core more": ({CGROUP: "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
    "v2 less than a core": ({CGROUP: "0::/", "sys/fs/cgroup/cpu.max": "1000 100000"}, 1),
    "v2 nothing at all": ({CGROUP: "0::/", "sys/fs/cgroup/cpu.max": "0 100000"}, 1),
    "v2 more than the machine": ({CGROUP: "0::/", "sys/fs/cgroup/cpu.max": "6400000 100000"}, 8),
    "v2 quota on the leaf": (
        {CGROUP: "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "200000 100000", "sys/fs/cgroup/a/cpu.max": "max 100000"},
        2,
    ),
    "v2 quota on the parent": (
        {CGROUP: "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "300000 100000"},
        3,
    ),
    "v2 the least quota counts": (
        {
            CGROUP: "0::/a/b",
            "sys/fs/cgroup/a/b/cpu.max": "500000 100000",
            "sys/fs/cgroup/a/cpu.max": "400000 100000",
            "sys/fs/cgroup/cpu.max": "700000 100000",
        },
        4,
    ),
    "v2 group of the host, not visible here": (
        {CGROUP: "0::/kubepods/pod1/c1", "sys/fs/cgroup/cpu.max": "200000 100000"},
        2,
    ),
    "v2 group of another process": ({CGROUP: "0::/a", "sys/fs/cgroup/b/cpu.max": "100000 100000"}, 8),
    "v2 group outside the namespace": (
        {CGROUP: "0::/../../other", "sys/fs/cgroup/cpu.max": "200000 100000", "sys/other/cpu.max": "100000 100000"},
        2,
    ),
    "v2 nothing above the mount": ({CGROUP: "0::/a", "sys/fs/cpu.max": "100000 100000", "cpu.max": "1 1"}, 8),
    "v2 among the lines of v1": ({CGROUP: f"{V1}0::/a", "sys/fs/cgroup/a/cpu.max": "200000 100000"}, 2),
    "v2 unreadable": ({CGROUP: "0::/", "sys/fs/cgroup/cpu.max": "lots of cores"}, 8),
    "v2 empty": ({CGROUP: "0::/", "sys/fs/cgroup/cpu.max": ""}, 8),
    "v2 no period": ({CGROUP: "0::/", "sys/fs/cgroup/cpu.max": "200000 0"}, 8),
    "v1 without a quota": (
        {CGROUP: V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
        8,
    ),
    "v1 with a quota": (
        {CGROUP: V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
        3,
    ),
    "v1 no period": (
        {CGROUP: V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "0"},
        8,
    ),
    "v1 half a pair": ({CGROUP: V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000"}, 8),
}


@pytest.mark.parametrize("tree", TREES)
def test_cores_are_those_of_affinity_and_quota(tree: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least of the affinity and of every quota above the process, rounded up, and at least 1."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    files, cores = TREES[tree]
    for path, text in files.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    assert usable_cpus(tmp_path) == cores


def test_affinity_is_the_most(tmp_path: Path) -> None:
    """A process that was pinned to one core uses one (taskset, cpusets)."""
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert usable_cpus(tmp_path) == len(allowed)


def test_this_machine_has_cores() -> None:
    """On the files of the machine that runs the test, too, the answer is a number of cores."""
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))
