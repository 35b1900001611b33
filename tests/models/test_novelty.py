"""Novelty: what is usual, the limit, and what the numbers stand for."""

from __future__ import annotations

import numpy as np
import torch

from nacre.models.novelty import FLAT, Novelty, calibrated, signals


def test_signals_against_numbers_by_hand() -> None:
    image = torch.tensor([[[[0.0, 1.0], [3.0, 1.0]]]])
    guess = torch.tensor([[[[1.0, 1.0], [3.0, 3.0]]]])
    logits = torch.tensor([[1.0, 2.0, -1.0]])
    energy, error = signals(image, guess, logits)[0].tolist()
    assert energy == np.float32(-np.log(np.exp([1.0, 2.0, -1.0]).sum())) or abs(energy + np.log(np.exp([1.0, 2.0, -1.0]).sum())) < 1e-6
    mean_error = (1 + 0 + 0 + 4) / 4
    detail = (1 + 4) / 2 + (9 + 0) / 2  # neighbours across, neighbours down
    assert abs(error - np.log(mean_error / (detail + FLAT))) < 1e-6
    assert signals(image, None, logits).shape == (1, 1)


def test_five_per_cent_of_further_known_images_are_called_unknown() -> None:
    draw = torch.Generator().manual_seed(0)
    alarms = []
    for _ in range(60):
        answers = torch.randint(0, 4, (1200,), generator=draw)
        found = torch.randn(1200, 2, generator=draw) * (1 + answers)[:, None] + 3 * answers[:, None]
        tables = calibrated(found[:80], answers[:80], 4)
        novelty = Novelty(tables)
        raw = novelty.raw(found[80:], answers[80:])
        share = (raw - tables["range"][0]) / (tables["range"][1] - tables["range"][0])
        alarms.append(float((share > 1).float().mean()))
    mean, error = np.mean(alarms), np.std(alarms) / np.sqrt(len(alarms))
    assert abs(mean - 0.05) < 3 * error + 0.01


def test_half_of_the_known_images_are_below_zero_and_unlike_ones_far_above() -> None:
    draw = torch.Generator().manual_seed(1)
    answers = torch.randint(0, 3, (300,), generator=draw)
    found = torch.randn(300, 2, generator=draw)
    tables = calibrated(found, answers, 3)
    raw = Novelty(tables).raw(found, answers)
    assert abs(float((raw < tables["range"][0]).float().mean()) - 0.5) < 0.05
    strange = Novelty(tables).raw(found + 6, answers)
    assert (strange > tables["range"][1]).all()


def test_a_class_without_images_of_its_own_takes_what_is_usual_for_all() -> None:
    found = torch.randn(50, 2, generator=torch.Generator().manual_seed(2)) + 5
    tables = calibrated(found, torch.zeros(50, dtype=torch.long), 2)
    assert torch.allclose(tables["mean"][1], found.mean(0), atol=1e-5)
    assert tables["deviation"].isfinite().all()


def test_one_image_is_enough() -> None:
    tables = calibrated(torch.ones(1, 2), torch.zeros(1, dtype=torch.long), 1)
    assert all(table.isfinite().all() for table in tables.values())
    assert float(tables["range"][1] - tables["range"][0]) > 0
