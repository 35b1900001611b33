"""A model as one ONNX graph that runs without nacre: from uint8 RGB images to class probabilities and novelty.

Shapes: B images, H x W pixels, C channels of the model, K classes.
"""

from __future__ import annotations

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nacre import __version__, files
from nacre.errors import NacreError
from nacre.evaluation.novelty import detector, known_images
from nacre.predicting import Predictor
from nacre.training.learner import Learner

OPSET = 18
TOLERANCE = 1e-3
"""How far a probability may be from nacre's own."""
LUMA = (19595, 38470, 7471)
"""Parts of 65536 that red, green and blue have in grey (ITU-R 601-2, as Pillow rounds them)."""


class Served(nn.Module):
    """What the graph computes: [B, H, W, 3] uint8 -> probabilities [B, K], and novelty [B] where it is calibrated."""

    def __init__(self, learner: Learner) -> None:
        nn.Module.__init__(self)
        self.model = learner.knowledge.model.frozen().cpu()
        self.novelty = detector(learner)
        self.grey = learner.spec.channels == 1

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Answer images [B, H, W, 3], uint8."""
        pixels = images.to(torch.int32)
        if self.grey:
            red, green, blue = LUMA
            pixels = ((pixels[..., 0] * red + pixels[..., 1] * green + pixels[..., 2] * blue + 32768) // 65536)[..., None]
        normal = self.model.normalise(pixels.permute(0, 3, 1, 2))
        out = self.model(normal, decode=self.novelty is not None)
        logits = self.model.answer(out.features)
        told = () if self.novelty is None else (self.novelty(normal, out.reconstruction, logits),)
        return (logits.softmax(1), *told)


def export(learner: Learner, path: Path, *, quantize: bool = False) -> dict[str, Any]:
    """Write a model as ONNX, checked against nacre's own answers before it is put in place.

    Args:
        learner: that knows a class, on the CPU.
        path: where.
        quantize: compute with 8-bit integers.

    Returns:
        JSON: bytes, names and shapes of input and outputs, on how many images it was checked, the largest difference of a
        probability; and, for int8, the accuracy on held-out images or exemplars before and after.

    Raises:
        NacreError: the libraries are not there, or the graph answers otherwise than nacre.
    """
    runtime = needed()
    samples = known_images(learner)
    images = samples.pixels() if len(samples) else drawn(learner)
    graph = traced(learner)
    whole = quantized(graph, rgb(images)) if quantize else graph
    session = runtime.InferenceSession(whole, providers=["CPUExecutionProvider"])
    probabilities = answers(session, rgb(images))[0]
    wanted, _ = Predictor(learner).scores(images)
    difference = float(np.abs(probabilities - wanted.numpy()).max())
    if not quantize and difference > TOLERANCE:
        raise NacreError(f"the ONNX graph answers otherwise than the model, by {difference:.2g}: nothing was written. Please report this.")
    files.write(path, whole)
    accuracy = None
    if len(samples):
        labels = samples.labels.numpy()
        before, after = (float((found.argmax(1) == labels).mean()) for found in (wanted.numpy(), probabilities))
        accuracy = {"before": before, "after": after}
    return {
        "file": str(path),
        "bytes": len(whole),
        "classes": len(learner.classes),
        "input": "images [B, {}, {}, 3] uint8".format(*learner.spec.size),
        "outputs": [output.name for output in session.get_outputs()],
        "checked": len(images),
        "difference": difference,
        "quantized": quantize,
        "accuracy": accuracy,
        "measured": "held-out images" if len(learner.knowledge.held) else "exemplars",
    }


def needed() -> Any:
    """ONNX Runtime.

    Raises:
        NacreError: it, or what writes graphs, is not installed.
    """
    try:
        import onnx  # noqa: F401 - asked for, so that all that is missing is told at once
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise NacreError(f"export needs {error.name}: pip install 'nacre[export]'.") from None
    return onnxruntime


def rgb(images: Tensor) -> NDArray[np.uint8]:
    """[B, C, H, W] -> [B, H, W, 3]."""
    return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def drawn(learner: Learner) -> Tensor:
    """Images to check on where a model carries none: noise."""
    return torch.randint(0, 256, (8, *learner.spec.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def traced(learner: Learner) -> bytes:
    """The graph, with class names and what else a caller must know in its metadata."""
    import onnx

    served = Served(learner).eval()
    names = ["probabilities"] + (["novelty"] if served.novelty is not None else [])
    example = torch.zeros(2, *learner.spec.size, 3, dtype=torch.uint8)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            served,
            (example,),
            input_names=["images"],
            output_names=names,
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        model = program.model_proto
    about = {
        "classes": json.dumps(list(learner.classes)),
        "nacre": __version__,
        "input": "uint8 RGB, resized so that the shorter side times `margin` fits, centre cut out",
        "margin": str(learner.spec.margin),
        "novelty": "above 1: unlike anything known; 5 % of known images are",
    }
    for key, value in about.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    out = io.BytesIO()
    onnx.save_model(model, out)
    return out.getvalue()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's progress off the terminal."""
    was = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(was)


def answers(session: Any, images: NDArray[np.uint8], batch: int = 64) -> list[NDArray[np.float32]]:
    """A session's outputs for images [n, H, W, 3]."""
    parts = [session.run(None, {"images": images[start : start + batch]}) for start in range(0, len(images), batch)]
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def quantized(graph: bytes, images: NDArray[np.uint8], most: int = 256) -> bytes:
    """The graph with convolutions in 8-bit integers, whose ranges are those of at most `most` images [n, H, W, 3]."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Images, a few at a time."""

        def __init__(self) -> None:
            some = images[np.linspace(0, len(images) - 1, min(most, len(images))).astype(int)]
            self.parts = iter([some[start : start + 16] for start in range(0, len(some), 16)])

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            """A few images, or None at the end."""
            part = next(self.parts, None)
            return None if part is None else {"images": part}

    with tempfile.TemporaryDirectory() as folder, quiet():
        plain, ready, small = (Path(folder) / name for name in ("plain.onnx", "ready.onnx", "small.onnx"))
        plain.write_bytes(graph)
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(small),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return small.read_bytes()
