"""The scikit-learn face: its checks, any labels, any layout of images, stages by `partial_fit`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from nacre import IncrementalClassifier, Learner

SMALL = {"backbone": "small", "optim": {"batch": 16}}
NOT_FOR_IMAGES = {
    "check_methods_subset_invariance": "float32 arithmetic differs in its seventh digit from one batch size to another",
}
"""Checks of scikit-learn's that do not make sense here, with the reason."""


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [IncrementalClassifier(epochs=8, settings={"backbone": "small"})], expected_failed_checks=lambda estimator: NOT_FOR_IMAGES
)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def pictures(labels: list[Any], count: int = 12, channels: int = 3, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Noisy patterns [n, H, W, C], uint8, one per label."""
    draw = np.random.default_rng(0)
    basis = draw.integers(40, 216, (len(labels), size, size, channels))
    which = np.repeat(np.arange(len(labels)), count)
    noise = draw.integers(-30, 30, (len(which), size, size, channels))
    return (basis[which] + noise).astype(np.uint8), np.array([labels[i] for i in which], dtype=object if None in labels else None)


@pytest.fixture(autouse=True)
def silence() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("labels", [["cat", "dog", "emu"], [3, -1, 7], [True, False]])
def test_labels_of_any_type_come_back(labels: list[Any]) -> None:
    x, y = pictures(labels)
    model = IncrementalClassifier(epochs=12, settings=SMALL).fit(x, y)
    assert list(model.classes_) == sorted(labels)
    assert model.score(x, y) > 0.9
    assert model.predict(x).dtype == y.dtype
    proba = model.predict_proba(x)
    assert proba.shape == (len(x), len(labels))
    assert np.allclose(proba.sum(1), 1)
    assert (model.classes_[proba.argmax(1)] == model.predict(x)).all()


def test_stages_by_partial_fit_keep_old_classes() -> None:
    x, y = pictures(["cat", "dog", "emu", "ape"])
    model = IncrementalClassifier(epochs=12, settings=SMALL, memory="5/class")
    for names in (["cat", "dog"], ["emu", "cat"], ["ape"]):
        some = np.isin(y, names)
        model.partial_fit(x[some], y[some])
    assert list(model.classes_) == ["ape", "cat", "dog", "emu"]
    assert isinstance(model.learner_, Learner)
    assert model.learner_.stages == 3
    assert model.score(x, y) > 0.8
    model.fit(x[y == "cat"], y[y == "cat"])  # anew
    assert list(model.classes_) == ["cat"]


def test_every_layout_of_the_same_images_is_the_same() -> None:
    x, y = pictures(["cat", "dog"])
    wanted = IncrementalClassifier(epochs=4, settings=SMALL).fit(x, y).predict_proba(x)
    for images, more in (
        (x.transpose(0, 3, 1, 2), {}),
        (x.transpose(0, 3, 1, 2), {"channels": "NCHW"}),
        (x, {"channels": "NHWC"}),
        (x / 255, {}),
        (x.astype(np.float32), {}),
        (x.transpose(0, 3, 1, 2).reshape(len(x), -1), {"shape": (3, 8, 8)}),
        (torch.from_numpy(x), {}),
        (x.tolist(), {}),
    ):
        model = IncrementalClassifier(epochs=4, settings=SMALL, **more).fit(images, y)
        assert np.allclose(model.predict_proba(images), wanted, atol=1e-5), more


def test_grey_images_and_what_cannot_be_known() -> None:
    x, y = pictures(["cat", "dog"], channels=1)
    flat = IncrementalClassifier(epochs=4, settings=SMALL).fit(x.reshape(len(x), 64), y)
    cube = IncrementalClassifier(epochs=4, settings=SMALL).fit(x[..., 0], y)
    assert flat.image_shape_ == cube.image_shape_ == (1, 8, 8)
    assert np.allclose(flat.predict_proba(x.reshape(len(x), 64)), cube.predict_proba(x[..., 0]), atol=1e-5)
    for images, words in (
        (np.zeros((4, 5, 6, 7)), "neither 1 nor 3"),
        (np.zeros((4, 3, 6, 3)), "say channels="),
        (np.zeros((4, 3, 6, 3, 2)), "dimensions"),
    ):
        with pytest.raises(ValueError, match=words):
            IncrementalClassifier().fit(images, [0, 1, 0, 1])
    with pytest.raises(ValueError, match="Did you mean 'replay'"):
        IncrementalClassifier(method="repley").fit(x, y)


def test_in_a_pipeline_and_under_cross_validation() -> None:
    x, y = load_digits(return_X_y=True)
    some = y < 3
    model = IncrementalClassifier(epochs=6, settings=SMALL, random_state=1)
    assert clone(model).get_params() == model.get_params()
    pipeline = make_pipeline(FunctionTransformer(lambda rows: rows / 16), model)
    assert cross_val_score(pipeline, x[some], y[some], cv=2).min() > 0.9


def test_the_seed_decides() -> None:
    x, y = pictures(["cat", "dog"])

    def fitted(state: Any) -> np.ndarray:
        return IncrementalClassifier(epochs=2, settings=SMALL, random_state=state).fit(x, y).predict_proba(x)

    assert np.array_equal(fitted(3), fitted(3))
    assert not np.array_equal(fitted(3), fitted(4))
    assert np.array_equal(fitted(np.random.RandomState(5)), fitted(np.random.RandomState(5)))
