"""Reading the few published formats that are pickles, by an unpickler that admits numbers, containers and numpy arrays only.

A pickle names the functions that rebuild its content. Here a name outside a short list is refused before anything is called,
so a file can give data and nothing else. This is the only module that knows the format.
"""

from __future__ import annotations

import codecs
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from nacre.errors import NacreError

RECONSTRUCT = np.zeros(0).__reduce__()[0]
ADMITTED: dict[tuple[str, str], Any] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): RECONSTRUCT for core in ("core", "_core")},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}
"""What a file may name: how numpy and Python 2 write arrays and bytes."""


class Restricted(pickle.Unpickler):
    """Refuses every name that is not admitted."""

    def find_class(self, module: str, name: str) -> Any:
        """The object of an admitted name."""
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no data set needs")
        return ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to what lies outside."""
        raise pickle.UnpicklingError("it refers to something outside itself")


def unpickled(path: Path) -> dict[str, Any]:
    """The dictionary in a file, its keys as text.

    Raises:
        NacreError: it is damaged, holds something else, or names anything but arrays and plain containers.
    """
    try:
        with path.open("rb") as file:
            found = Restricted(file, encoding="bytes").load()
    except Exception as error:
        raise NacreError(f"{path} is no data set that can be read safely ({error}): use the file as it was published.") from None
    if not isinstance(found, dict):
        raise NacreError(f"{path} holds a {type(found).__name__}, not the dictionary of a data set: use the file as it was published.")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in found.items()}
