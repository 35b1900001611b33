"""Files that are whole or not there: written beside their place, synced, renamed; tensors with a digest over everything.

Tensors are safetensors files, whose reader runs no code; what nacre has to say about them is JSON in their header.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nacre.errors import NacreError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the system says where there is no room."""
FORMAT = 1
"""Of nacre's tensor files; a reader refuses a newer one."""
DRAFT = 4
"""Random bytes in a draft's name."""


class NoRoom(NacreError):  # noqa: N818 - a finding
    """The disk is full."""


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON text that every reader takes: what is not a finite number becomes null."""

    def finite(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {key: finite(inner) for key, inner in item.items()}
        if isinstance(item, (list, tuple)):
            return [finite(inner) for inner in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(finite(value), indent=indent)


def write(path: Path, data: bytes | str) -> None:
    """Put `data` at `path`, so that at any moment of a crash the old or the new file is there, whole."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(DRAFT)}.part")
    try:
        with draft.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise NoRoom(f"no room on the disk for {path} ({len(data) / 1e6:,.1f} MB): make room, and repeat the command.") from None
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
            raise NacreError(f"cannot write {path} ({error.strerror}): give a place that is there and where you may write.") from None
        raise
    sync(path.parent)


def duplicate(path: Path, twin: Path) -> None:
    """Put a second name, or where the system has no links a copy, of a file at `twin`, whole at any moment."""
    draft = twin.with_name(f".{twin.name}.{secrets.token_hex(DRAFT)}.part")
    try:
        os.link(path, draft)
        draft.replace(twin)
        draft.unlink(missing_ok=True)  # two names of one file do not replace one another
    except OSError:
        draft.unlink(missing_ok=True)
        write(twin, path.read_bytes())
    sync(twin.parent)


def sweep(path: Path) -> None:
    """Remove the drafts of a file that killed processes left. Only who alone may write the file may do so."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 2 * DRAFT}.part"):
        with suppress(OSError):
            draft.unlink()


def sync(folder: Path) -> None:
    """Make the names in a folder lasting, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON header as one file.

    Args:
        path: where.
        tensors: on any device, in any memory layout; shared storage is written once per name.
        header: anything JSON can hold.
    """
    from safetensors.torch import save

    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = as_json(header)
    write(path, save(flat, {"nacre": text, "format": str(FORMAT), "digest": digest(flat, f"{FORMAT}:{text}")}))


def header_bytes(path: Path) -> int:
    """Bytes of a tensor file that are not tensors.

    Raises:
        NacreError: there is no such file.
    """
    try:
        with path.open("rb") as file:
            return 8 + int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise NacreError(f"cannot read {path} ({error.strerror}): give a file that nacre wrote.") from None


def read_tensors(path: Path, what: str = "model file") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Args:
        path: of the file.
        what: how to call it in an error.

    Raises:
        NacreError: there is no such file, or it is damaged, of a newer format, or not ours.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise NacreError(f"no {what} at {path}: give the path of a file that nacre wrote.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in list(file.keys())} if "nacre" in metadata else {}
    except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError, TypeError) as error:
        raise NacreError(f"{path} is cut short, damaged, or no {what} ({error}): use a copy that is whole.") from None
    if "nacre" not in metadata:
        raise NacreError(f"{path} is a safetensors file, but not nacre's: give a {what} that nacre wrote.")
    if not metadata.get("format", "").isdecimal() or int(metadata["format"]) > FORMAT:
        raise NacreError(f"{path} has format {metadata.get('format')!r}, this nacre reads up to {FORMAT}: install a newer nacre.")
    if metadata.get("digest") != digest(tensors, f"{metadata['format']}:{metadata['nacre']}"):
        raise NacreError(f"{path} is damaged (its digest does not fit its content): use a copy that is whole.")
    try:
        header = json.loads(metadata["nacre"])
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise NacreError(f"{path} has a header that cannot be understood: use a copy that is whole.")
    return tensors, header


def digest(tensors: Mapping[str, Tensor], header: str) -> str:
    """SHA-256 over the header and every tensor's name, type, shape and bytes."""
    total = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
