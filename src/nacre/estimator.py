"""The scikit-learn face: an estimator that learns new classes by `partial_fit` without forgetting the old ones.

Shapes: n images, C channels (1 or 3), H x W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d
from torch import Tensor

from nacre import settings
from nacre.data.augment import Augment, natural_augment
from nacre.data.memory import budget
from nacre.data.source import ImageSpec, Samples
from nacre.data.stream import Stage
from nacre.errors import NacreError
from nacre.modelfile import method_of
from nacre.predicting import Predictor
from nacre.training.learner import Learner
from nacre.training.runtime import Hardware, Runtime

Order = Literal["auto", "NCHW", "NHWC"]


class IncrementalClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """An image classifier that learns classes as they come.

    Every `partial_fit` is a stage: its images may be of new classes, of known ones, or of both, and what was learnt before is
    kept by the method's means. `fit` begins anew.

    Of scikit-learn's `estimator_checks` all pass but one: `check_methods_subset_invariance` wants the same seven digits from batches
    of other sizes, which float32 arithmetic does not give.

    Args:
        method: how to learn, a name of `nacre.METHODS`.
        settings: of the method, such as `{"optim": {"lr": 0.02}}`; None: its own.
        epochs: of every stage; None: the method's own.
        memory: exemplars, such as `20/class` or `5MB`; `auto`: what the method wants.
        channels: where the channels are in images of four dimensions; `auto`: found out by looking for 1 or 3.
        shape: height and width, or channels, height and width, of images that come as flat rows; None: square grey ones where
            that fits, else rows of one pixel's height.
        augment: what the training view does otherwise than suits the images, see `nacre.data.augment.Augment`; None: nothing.
        device: `auto`, `cpu`, `cuda` or `mps`.
        precision: `fp32` or `bf16`.
        random_state: a seed, a `RandomState`, or None for one that is drawn.

    Attributes:
        classes_: labels, sorted, [K].
        n_features_in_: numbers of an image.
        image_shape_: C, H, W.
        range_: the values that stand for black and white: 0 and 255, 0 and 1, or the least and the greatest that were first seen.
        learner_: the `nacre.Learner` inside.
    """

    arrived_: list[Any]
    n_features_in_: int

    def __init__(
        self,
        *,
        method: str = "reconstruction",
        settings: Mapping[str, Any] | None = None,
        epochs: int | None = None,
        memory: str = "auto",
        channels: Order = "auto",
        shape: tuple[int, ...] | None = None,
        augment: Mapping[str, Any] | None = None,
        device: str = "auto",
        precision: str = "fp32",
        random_state: Any = 0,
    ) -> None:
        self.method = method
        self.settings = settings
        self.epochs = epochs
        self.memory = memory
        self.channels = channels
        self.shape = shape
        self.augment = augment
        self.device = device
        self.precision = precision
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> IncrementalClassifier:
        """Begin anew, and learn a first stage.

        Args:
            X: images [n, C, H, W], [n, H, W, C], [n, H, W], or flat [n, numbers]; uint8, or floats in [0, 1], [0, 255], or any range.
            y: labels [n] of any type.
        """
        for name in ("learner_", "classes_", "arrived_"):
            if hasattr(self, name):
                delattr(self, name)
        return self.partial_fit(X, y)

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> IncrementalClassifier:
        """Learn a stage.

        Args:
            X: images, see `fit`.
            y: labels [n] of any type; new ones are new classes.
            classes: for scikit-learn's sake; classes need not be announced.
        """
        first = not hasattr(self, "learner_")
        images, labels = self._checked(X, y, first=first)
        if first:
            self._begin(images)
        known = list(self.arrived_)
        position = {label: number for number, label in enumerate(known)}
        fresh = [label for label in np.unique(labels).tolist() if label not in position]
        position |= {label: len(known) + number for number, label in enumerate(fresh)}
        self.arrived_ = [*known, *fresh]
        pixels = self._pixels(images)
        samples = Samples.of(pixels, torch.tensor([position[label] for label in labels.tolist()]))
        nothing = samples.take(torch.empty(0, dtype=torch.long))
        names = tuple(f"{label!r}" for label in fresh)
        self.learner_.learn(Stage(self.learner_.stages, len(known), len(position), names, samples, nothing))
        mixed = labels.dtype.kind == "O"
        self.classes_ = np.array(sorted(self.arrived_, key=str if mixed else None), dtype=object if mixed else None)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probabilities [n, K] in the order of `classes_`."""
        check_is_fitted(self, "learner_")
        images, _ = self._checked(X, None, answering=True)
        predictor = Predictor(self.learner_)
        parts = [predictor.scores(self._pixels(images[start : start + 256]))[0] for start in range(0, len(images), 256)]
        column = {label: number for number, label in enumerate(self.arrived_)}
        found = torch.cat(parts).double()[:, [column[label] for label in self.classes_.tolist()]]
        return np.asarray((found / found.sum(1, keepdim=True)).numpy())

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The likeliest labels [n]."""
        probabilities = self.predict_proba(X)  # first, so that what is not fitted says so
        return np.asarray(self.classes_[probabilities.argmax(1)])

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn should know."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.non_deterministic = self.random_state is None
        return tags

    def _checked(
        self, X: ArrayLike, y: ArrayLike | None, *, first: bool = False, answering: bool = False
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Finite images of the shape that was learnt, and labels."""
        images = check_array(X, allow_nd=True, dtype="numeric", estimator=self)
        if not first and images[0].size != self.n_features_in_:
            found, wanted = images[0].size, self.n_features_in_  # the sentence is scikit-learn's
            raise ValueError(f"X has {found} features, but {type(self).__name__} is expecting {wanted} features as input.")
        if first:
            self.n_features_in_ = images[0].size
        if y is None and not answering:
            raise ValueError("requires y to be passed, but the target y is None: give every image's label.")
        if y is None:
            return images, np.empty(0)
        labels = np.asarray(column_or_1d(np.asarray(y), dtype=None, warn=True))
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            raise ValueError("Input y contains NaN or infinity: every image needs a label.")
        check_classification_targets(labels)
        if len(labels) != len(images):
            raise ValueError(f"Found input variables with inconsistent numbers of samples: [{len(images)}, {len(labels)}]")
        return images, labels

    def _begin(self, images: NDArray[Any]) -> None:
        """A learner for images of this kind."""
        try:
            self.image_shape_ = shape_of(images, self.channels, self.shape)
            self.range_ = range_of(images)
            method = method_of({"name": self.method, **dict(self.settings or {})})
            method = method if self.epochs is None else method.lasting(self.epochs)
            runtime = Runtime(settings.build(Hardware, {"device": self.device, "precision": self.precision}, "hardware."))
        except NacreError as error:
            raise ValueError(str(error)) from None
        view = {**settings.plain(natural_augment(self._pixels(images[:256]))), **dict(self.augment or {})}
        spec = ImageSpec(self.image_shape_, settings.build(Augment, view, "augment."))
        seed = self.random_state
        seed = seed if isinstance(seed, (int, np.integer)) else int((seed or np.random.mtrand._rand).randint(2**31))
        memory = None if self.memory == "auto" else budget(self.memory)
        self.learner_ = Learner(method, spec, memory=memory, seed=int(seed), runtime=runtime)
        self.arrived_ = []

    def _pixels(self, images: NDArray[Any]) -> Tensor:
        """[n, C, H, W], uint8."""
        channels, height, width = self.image_shape_
        laid = images.reshape(len(images), *laid_out(images, self.channels, self.image_shape_))
        if laid.ndim == 4 and last_is_channels(laid, self.channels, self.image_shape_):
            laid = laid.transpose(0, 3, 1, 2)
        laid = laid.reshape(len(images), channels, height, width)
        if laid.dtype != np.uint8:
            low, high = self.range_
            laid = ((laid.astype(np.float64) - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8)
        return torch.from_numpy(np.ascontiguousarray(laid))


def shape_of(images: NDArray[Any], order: Order, shape: tuple[int, ...] | None) -> tuple[int, int, int]:
    """C, H, W of images of two to four dimensions.

    Raises:
        NacreError: the channels are neither one nor three, or the shape does not fit.
    """
    if images.ndim == 2:
        numbers = images.shape[1]
        side = math.isqrt(numbers)
        given = shape or ((side, side) if side * side == numbers and side > 1 else (1, numbers))
        full = given if len(given) == 3 else (1, *given)
        if len(full) != 3 or math.prod(full) != numbers:
            raise NacreError(
                f"rows of {numbers} numbers make no images of shape {given}: give (height, width) or (channels, height, width)."
            )
        return int(full[0]), int(full[1]), int(full[2])
    if images.ndim == 3:
        return 1, images.shape[1], images.shape[2]
    if images.ndim != 4:
        raise NacreError(f"X has {images.ndim} dimensions: give images [n, C, H, W], [n, H, W, C] or [n, H, W], or rows [n, numbers].")
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if order == "auto" and not first and not last:
        raise NacreError(f"X of shape {images.shape} has neither 1 nor 3 channels, neither first nor last: give grey or colour images.")
    if order == "NCHW" or (order == "auto" and first and not last):
        return images.shape[1], images.shape[2], images.shape[3]
    if order == "auto" and first and last:
        raise NacreError(f"X of shape {images.shape} may have its channels first or last: say channels='NCHW' or 'NHWC'.")
    return images.shape[3], images.shape[1], images.shape[2]


def last_is_channels(images: NDArray[Any], order: Order, shape: tuple[int, int, int]) -> bool:
    """Whether images of four dimensions have their channels last."""
    return order == "NHWC" or (order == "auto" and images.shape[1:] == (*shape[1:], shape[0]) and images.shape[1:] != shape)


def laid_out(images: NDArray[Any], order: Order, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """An image's shape as it came, or, of flat rows, as it is meant."""
    return tuple(images.shape[1:]) if images.ndim == 4 else shape


def range_of(images: NDArray[Any]) -> tuple[float, float]:
    """The values that stand for black and white."""
    if images.dtype == np.uint8:
        return 0.0, 255.0
    low, high = float(images.min()), float(images.max())
    for white in (1.0, 255.0):
        if low >= 0 and high <= white and high - low > white / 4:  # what fills less of the range is something else than light
            return 0.0, white
    return (low, high) if high > low else (low, low + 1)
