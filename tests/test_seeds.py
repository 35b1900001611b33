"""Random streams: one per place, the same on every machine, and the caller's state untouched."""

from __future__ import annotations

import hashlib

import pytest
import torch

from nacre.seeds import derive, generator, seeded


def test_a_seed_is_half_the_hash_of_its_place() -> None:
    text = b"3:fit:1:20"
    want = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") // 2
    assert derive(3, "fit", 1, 20) == want
    assert 0 <= want < 2**63


def test_no_two_places_share_a_seed() -> None:
    places = [(), ("fit",), ("fit", 0), ("fit", 1), ("fit", 0, 1), ("fit", 1, 0), ("fit", 10), ("fit", 1, 10), ("fit", 11, 0), ("grow", 0)]
    found = {derive(seed, *place) for seed in range(50) for place in places}
    assert len(found) == 50 * len(places)


def test_generators_repeat_with_their_place_and_leave_torchs_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (torch.rand(5, generator=generator(1, *place)) for place in (("a", 2), ("a", 2), ("a", 3)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seeding_lends_torchs_generator() -> None:
    torch.manual_seed(11)
    want = torch.rand(4)
    torch.manual_seed(11)
    first = torch.rand(2)
    with seeded(5, "here"):
        inside = torch.rand(3)
        with seeded(5, "deeper"):
            torch.rand(7)
        after_nesting = torch.rand(3)
    assert torch.equal(torch.cat([first, torch.rand(2)]), want)
    with seeded(5, "here"):
        assert torch.equal(torch.cat([torch.rand(3), torch.rand(3)]), torch.cat([inside, after_nesting]))


def test_an_error_gives_the_state_back_too() -> None:
    before = torch.random.get_rng_state()
    with pytest.raises(RuntimeError, match="invalid for input"), seeded(0, "here"):
        torch.rand(3).reshape(2)
    assert torch.equal(torch.random.get_rng_state(), before)
