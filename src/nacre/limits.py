"""What others leave of the machine: memory (of the machine's, the control group's and the own limit the least), and cores."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GUESS = 2**31
"""Bytes, where the system tells nothing."""


def free_memory() -> int:
    """Bytes; 2 GiB where the system does not tell."""
    return max(0, min([*machine(), *groups(), *own()], default=GUESS))


def machine() -> Iterator[int]:
    """What the machine could give, caches that it can drop included."""
    with suppress(OSError, ValueError, IndexError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        yield int(lines["MemAvailable"].split()[0]) * 1024
        return
    with suppress(ValueError, OSError, AttributeError):
        yield os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def groups() -> Iterator[int]:
    """What the control groups of this process leave; the files in the page cache, which they may drop, do not count as used."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds in ("", "memory"):
                root = Path("/sys/fs/cgroup") / kinds
                for place in (root / path.lstrip("/"), root):
                    yield from left_in(place)


def left_in(group: Path) -> Iterator[int]:
    """What one control group leaves, in either version."""
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        with suppress(OSError, ValueError):
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            cached = int(stat.get("inactive_file", stat.get("total_inactive_file", 0)))
            yield int((group / limit).read_text()) - int((group / used).read_text()) + cached


def own() -> Iterator[int]:
    """What `ulimit` leaves of address space and of data."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = [int(number) * os.sysconf("SC_PAGE_SIZE") for number in Path("/proc/self/statm").read_text().split()]
        for kind, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
            soft, _ = resource.getrlimit(kind)
            if soft != resource.RLIM_INFINITY:
                yield soft - used


def busy_elsewhere(glances: int = 5) -> int:
    """Threads that compute now, but for this one: the fewest at a few glances 5 ms apart; 0 where the system does not tell."""
    seen = []
    with suppress(OSError, ValueError, IndexError):
        for _ in range(glances):
            seen.append(int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0]) - 1)
            time.sleep(0.005)
    return max(0, min(seen, default=0))
