"""One run of a study in a process of its own: `python -m nacre.worker CONFIG FOLDER`.

It ends when its standard input does, so that no run outlives the study that wanted it, however that was killed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from nacre.errors import NacreError


def leave_with_parent() -> None:
    """End this process when nobody holds the other end of its standard input any more."""
    while os.read(0, 4096):  # not through sys.stdin, whose lock would still be held when this process wants to end
        pass
    os._exit(1)


def main(config: Path, folder: Path) -> int:
    """Run what the file describes in a folder, going on where it was killed; a JSON line per finished stage, or one with an error."""
    from nacre.experiment import Experiment, Run

    try:
        session = Run(Experiment.load(config), folder)
        for result in [*session.history, *session.stages()]:
            tell({"stage": result["stage"], "stages": session.total, "accuracy": result["accuracy"]})
    except NacreError as error:
        tell({"error": str(error)})
        return 2
    return 0


def tell(line: dict[str, object]) -> None:
    """One line for the parent."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    threading.Thread(target=leave_with_parent, daemon=True).start()
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
