"""How fast a model in use answers, and how soon.

Files: photographs made here through `predict` against Pillow alone, which only decodes them, and against the model alone, which
only answers; the slower of the two is what `predict` could reach if the other cost nothing. Arrays: images in memory through
`Predictor` against the bare forward pass of the same network. ONNX Runtime runs the exported graph beside PyTorch. Rounds of
all take turns in the same process, and the median counts. Start-up: real processes from the shell.

    python benchmarks/predict.py [--json]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from data import photographs, pillow_alone
from nacre import files, modelfile
from nacre.data.augment import natural_augment
from nacre.data.source import ImageSpec, Samples
from nacre.data.stream import Stage
from nacre.export import answers, traced
from nacre.methods.reconstruction import Reconstruction
from nacre.predicting import Predictor
from nacre.training.learner import Learner
from nacre.training.optim import Optim
from nacre.training.runtime import Hardware, Runtime

CLASSES = 10


def learner_of(size: int, backbone: str, threads: int) -> Learner:
    """A learner of ten classes of noise, hardly trained: speed does not depend on what it learnt."""
    images = torch.randint(0, 256, (4 * CLASSES, 3, size, size), dtype=torch.uint8)
    samples = Samples.of(images, torch.arange(CLASSES).repeat(4))
    runtime = Runtime(Hardware(device="cpu", precision="fp32", layout="contiguous", threads=threads))
    method = Reconstruction(backbone=backbone, optim=Optim(epochs=1, batch=8))
    learner = Learner(method, ImageSpec((3, size, size), natural_augment(images), 256 / 224 if size == 224 else 1.0), runtime=runtime)
    nothing = samples.take(torch.empty(0, dtype=torch.long))
    learner.learn(Stage(0, 0, CLASSES, tuple(f"class {i}" for i in range(CLASSES)), samples, nothing))
    return learner


def seconds(work: Callable[[], Any]) -> float:
    """What some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def rounds(works: dict[str, Callable[[], Any]], count: int) -> dict[str, float]:
    """Median seconds of every work; they take turns, after a first round that warms up."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(count + 1):
        for name, work in works.items():
            taken = seconds(work)
            if number:
                found[name].append(taken)
    return {name: median(values) for name, values in found.items()}


def throughput(size: int, backbone: str, images: int, count: int, threads: int) -> dict[str, float]:
    """Images per second of everything, for one network."""
    import onnxruntime

    torch.manual_seed(0)
    learner = learner_of(size, backbone, threads)
    predictor = Predictor(learner)
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8)
    laid = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(traced(learner), options)
    model = learner.knowledge.model.frozen()
    parts = pixels.split(64)
    normal = [model.normalise(part) for part in parts]

    @torch.no_grad()
    def bare() -> None:
        for part in normal:
            model(part, decode=True)

    with tempfile.TemporaryDirectory() as folder:
        paths = photographs(Path(folder), images).paths
        works = {
            "files": lambda: list(predictor.files(paths)),
            "decoding": lambda: pillow_alone(paths),
            "arrays": lambda: [list(predictor.arrays(part)) for part in parts],
            "forward": bare,
            "onnx": lambda: answers(session, laid),
        }
        taken = rounds(works, count)
    return {name: images / value for name, value in taken.items()}


def start_up(count: int) -> dict[str, float]:
    """Median seconds of whole processes: help, an import of torch, and `predict` on one image."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model, image = Path(folder) / "m.nacre", Path(folder) / "image.png"
        modelfile.save(model, learner_of(32, "resnet32", 1))
        from PIL import Image

        Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(image)
        commands = {
            "help": ["-m", "nacre", "--help"],
            "torch": ["-c", "import torch"],
            "predict": ["-m", "nacre", "predict", str(model), str(image)],
        }
        return rounds(
            {
                name: lambda rest=rest: subprocess.run([sys.executable, *rest], check=True, capture_output=True)
                for name, rest in commands.items()
            },
            count,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--networks", nargs="+", default=["32/resnet32", "224/resnet18"])
    asked = parser.parse_args()
    found: dict[str, Any] = {"threads": asked.threads, "networks": {}}
    for network in asked.networks:
        size, backbone = network.split("/")
        speed = throughput(int(size), backbone, asked.images, asked.rounds, asked.threads)
        reachable = min(speed["decoding"] * asked.threads, speed["arrays"])
        found["networks"][network] = {
            "images_per_second": speed,
            "files_over_decoding": speed["files"] / speed["decoding"],
            "files_over_reachable": speed["files"] / reachable,
            "arrays_over_forward": speed["arrays"] / speed["forward"],
            "onnx_over_forward": speed["onnx"] / speed["forward"],
        }
    found["start_up"] = start_up(asked.rounds)
    if asked.json:
        print(files.as_json(found, indent=1))
        return
    table = Table("network", "files/s", "Pillow/s", "arrays/s", "forward/s", "ONNX/s", "files: decoding", "reachable", "arrays: forward")
    for name, row in found["networks"].items():
        speeds = (f"{row['images_per_second'][part]:,.0f}" for part in ("files", "decoding", "arrays", "forward", "onnx"))
        shares = (f"{row[part]:.2f}" for part in ("files_over_decoding", "files_over_reachable", "arrays_over_forward"))
        table.add_row(name, *speeds, *shares)
    Console(width=140).print(table)
    starts = found["start_up"]
    print(f"start-up: help {starts['help']:.2f} s, import torch {starts['torch']:.2f} s, predict {starts['predict']:.2f} s")


if __name__ == "__main__":
    main()
