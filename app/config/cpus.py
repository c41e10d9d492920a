"""The number of CPUs that this process may use: its CPU affinity, limited by the CPU quota of its container."""

import math
import os
from pathlib import Path


def usable_cpus(root: Path = Path("/")) -> int:
    """A whole number of CPUs, at least 1. A quota of 1.5 CPUs counts as 2. `root` is the folder of /proc and /sys."""
    affinity = len(os.sched_getaffinity(0))
    quotas = [*_quotas_v2(root), *_quotas_v1(root)]
    return max(1, min([affinity, *(math.ceil(quota) for quota in quotas)]))


def _quotas_v2(root: Path) -> list[float]:
    """Quotas, in CPUs, of this process's control group and of every group above it.

    Format of cpu.max: "$MAX $PERIOD" or "max $PERIOD" (Linux, Documentation/admin-guide/cgroup-v2.rst).
    """
    mount = root / "sys/fs/cgroup"
    group = mount / _group_path(root).lstrip("/")
    quotas = []
    for folder in [group, *group.parents]:
        if folder == mount.parent:
            break
        limit, _, period = _read(folder / "cpu.max").partition(" ")
        if limit.isdigit() and period.isdigit() and int(period):
            quotas.append(int(limit) / int(period))
    return quotas


def _quotas_v1(root: Path) -> list[float]:
    """The same for version 1, where cpu.cfs_quota_us is -1 without a quota."""
    folder = root / "sys/fs/cgroup/cpu"
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return [int(quota) / int(period)] if quota.isdigit() and period.isdigit() and int(period) else []


def _group_path(root: Path) -> str:
    for line in _read(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::") and ".." not in line:
            return line.removeprefix("0::")
    return "/"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
