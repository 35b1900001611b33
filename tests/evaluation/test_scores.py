"""Scores against loops over single images."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nacre.evaluation.scores import calibration, confusion, detection, error_split


def drawn(n: int, classes: int, seed: int, spread: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, classes, generator=draw) * spread, torch.randint(0, classes, (n,), generator=draw)


@pytest.mark.parametrize(("bins", "classes"), [(15, 4), (5, 2), (1, 3)])
def test_calibration_by_a_loop(bins: int, classes: int) -> None:
    logits, labels = drawn(150, classes, bins)
    nll = brier = 0.0
    held: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        powers = [math.exp(x) for x in row]
        p = [power / sum(powers) for power in powers]
        nll -= math.log(p[label]) / 150
        brier += sum((q - (k == label)) ** 2 for k, q in enumerate(p)) / 150
        confidence = max(p)
        place = next(b for b in range(bins) if b / bins < confidence <= (b + 1) / bins)
        held[place].append((confidence, p.index(confidence) == label))
    ece = sum(abs(sum(right for _, right in part) - sum(c for c, _ in part)) / 150 for part in held)
    assert calibration(logits, labels, bins) == pytest.approx({"ece": ece, "nll": nll, "brier": brier})


def test_certainty_that_is_right_and_certainty_that_is_wrong() -> None:
    sure = torch.tensor([[800.0, 0.0], [0.0, 800.0]])
    assert calibration(sure, torch.tensor([0, 1])) == pytest.approx({"ece": 0, "nll": 0, "brier": 0})
    assert calibration(sure, torch.tensor([1, 0])) == pytest.approx({"ece": 1, "nll": 800, "brier": 2})


def test_indifference_between_k_classes() -> None:
    found = calibration(torch.zeros(8, 4), torch.zeros(8, dtype=torch.long))
    assert found == pytest.approx({"ece": 0.75, "nll": math.log(4), "brier": 0.75**2 + 3 * 0.25**2})


def test_of_no_image_there_is_no_calibration() -> None:
    assert all(math.isnan(value) for value in calibration(torch.empty(0, 3), torch.empty(0, dtype=torch.long)).values())


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 6), st.integers(0, 99))
@settings(max_examples=30, derandomize=True, deadline=None)
def test_errors_part_into_four_directions(n: int, classes: int, known: int, seed: int) -> None:
    answers, labels = (part.tolist() for part in torch.randint(0, classes, (2, n), generator=torch.Generator().manual_seed(seed)))
    want = dict.fromkeys(("old_to_new", "new_to_old", "old_to_old", "new_to_new"), 0.0)
    for answer, label in zip(answers, labels, strict=True):
        if answer != label:
            want[f"{'old' if label < known else 'new'}_to_{'old' if answer < known else 'new'}"] += 1 / n
    found = error_split(torch.tensor(answers), torch.tensor(labels), known)
    assert found == pytest.approx(want)
    wrong = sum(a != b for a, b in zip(answers, labels, strict=True)) / n
    assert sum(found.values()) == pytest.approx(wrong)
    counts = confusion(torch.tensor(answers), torch.tensor(labels), classes)
    pairs = list(zip(labels, answers, strict=True))
    assert counts == [[pairs.count((truth, answer)) for answer in range(classes)] for truth in range(classes)]


@given(st.integers(1, 45), st.integers(1, 30), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, derandomize=True, deadline=None)
def test_detection_by_brute_force(known: int, strange: int, coarse: bool, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    seen, unseen = torch.randn(known, generator=draw), torch.randn(strange, generator=draw) + 1
    if coarse:  # many ties
        seen, unseen = seen.round(), unseen.round()
    found = detection(seen, unseen)
    wins = sum((u > s) + 0.5 * (u == s) for u in unseen.tolist() for s in seen.tolist())
    assert found["auroc"] == pytest.approx(wins / (known * strange))
    limit = min(t for t in seen.tolist() if sum(s <= t for s in seen.tolist()) * 100 >= 95 * known)
    assert found["fpr95"] == pytest.approx(sum(u <= limit for u in unseen.tolist()) / strange)


def test_detection_of_what_is_plain_and_of_what_is_hopeless() -> None:
    low, high = torch.arange(10.0), torch.arange(10.0) + 100
    assert detection(low, high) == {"auroc": 1.0, "fpr95": 0.0}
    assert detection(high, low) == {"auroc": 0.0, "fpr95": 1.0}
    assert detection(torch.zeros(4), torch.zeros(6)) == {"auroc": 0.5, "fpr95": 1.0}
