"""One writer at a time for a model file: a lock beside it, and a note of who holds it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from nacre import files
from nacre.errors import NacreError


def beside(path: Path, ending: str) -> Path:
    """A hidden neighbour of a file."""
    return path.with_name(f".{path.name}.{ending}")


def former(path: Path) -> Path:
    """Where the model as it was before a change is kept."""
    return path.with_name(f"{path.name}.prev")


@contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Be the only one who changes a model file, and clear what killed ones had begun to write beside it.

    Args:
        path: of the model, which need not be there yet.
        wait: for another holder to end, rather than refuse.

    Raises:
        NacreError: another process holds it, or its folder is not there or cannot be written to.
    """
    if not path.parent.is_dir():
        raise NacreError(f"no folder {path.parent}: make it, or give a place for the model that is there.")
    try:
        with FileLock(beside(path, "lock"), timeout=-1 if wait else 0):
            for file in (path, former(path), beside(path, "holder")):
                files.sweep(file)
            files.write(beside(path, "holder"), json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": time.time()}))
            try:
                yield
            finally:
                beside(path, "holder").unlink(missing_ok=True)
    except Timeout:
        raise NacreError(f"{path} is being changed by {holder(path)}: wait for it, or say --wait.") from None
    except PermissionError as error:
        raise NacreError(f"cannot write in {path.parent} ({error.strerror}): give a place where you may write.") from None


def holder(path: Path) -> str:
    """Who holds a model, in words."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        who = json.loads(beside(path, "holder").read_text())
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(who["since"])))
        return f"process {int(who['process'])} on {str(who['host'])!r} since {since}"
    return "another process"
