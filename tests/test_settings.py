"""Settings survive text, and all mistakes come in one message with the nearest right word."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
import tomli_w

from nacre.errors import NacreError
from nacre.methods import METHODS
from nacre.settings import build, place, plain
from nacre.training.method import Decoding
from nacre.training.optim import Optim


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 3
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}, but it must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = "x"
    kind: Literal["cat", "dog"] = "cat"
    on: bool = False
    shares: tuple[float, ...] = (0.1, 0.2)
    inner: Inner = Inner()
    extra: Inner | None = None
    present: Inner | None = Inner(size=7)
    elsewhere: int = field(default=1, metadata={"elsewhere": True})


def refused(given: dict[str, Any], where: str = "") -> list[str]:
    with pytest.raises(NacreError) as caught:
        build(Outer, given, where)
    return str(caught.value).splitlines()


def test_plain_is_complete_and_holds_no_dataclass() -> None:
    assert plain(Outer()) == {
        "name": "x",
        "kind": "cat",
        "on": False,
        "shares": [0.1, 0.2],
        "inner": {"size": 3, "rate": 0.5},
        "extra": "none",
        "present": {"size": 7, "rate": 0.5},
    }


CHANGED = [
    Outer(),
    Outer(name="none", kind="dog", on=True, shares=(), inner=Inner(size=9), extra=Inner(rate=0.25), present=None),
    Outer(extra=Inner(), present=Inner(size=1, rate=1e-9)),
]


@pytest.mark.parametrize("settings", CHANGED)
def test_settings_survive_plain_and_toml(settings: Outer) -> None:
    assert build(Outer, plain(settings)) == settings
    assert build(Outer, tomllib.loads(tomli_w.dumps(plain(settings)))) == settings


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_survives_plain_and_toml(name: str) -> None:
    cls = METHODS[name]
    optim = Optim(name="adamw", lr=0.003, schedule="multi-step", milestones=(0.25, 0.5, 0.75), warmup=0.1, clip=1.0, epochs=7)
    whole = replace(cls(), optim=optim, later=Optim(epochs=2), decoding=Decoding(weight=0.125))
    for method in (cls(), whole, replace(whole, later=None, decoding=None)):
        assert build(cls, plain(method)) == method
        assert build(cls, tomllib.loads(tomli_w.dumps(plain(method)))) == method


def test_what_is_not_given_keeps_its_default_in_nested_settings_too() -> None:
    assert build(Outer, {}) == Outer()
    assert build(Outer, {"inner": {"rate": 2.0}}) == Outer(inner=Inner(rate=2.0))
    assert build(Outer, {"present": {"rate": 2.0}}) == Outer(present=Inner(size=7, rate=2.0))
    assert build(Outer, {"extra": {"rate": 2.0}}) == Outer(extra=Inner(rate=2.0))


def test_none_is_written_as_text() -> None:
    assert build(Outer, {"present": "none"}).present is None
    assert build(Outer, {"name": "none"}).name == "none"
    assert refused({"inner": "none"})[0].startswith("inner = 'none': ")


def test_text_counts_as_the_number_it_spells() -> None:
    found = build(Outer, {"on": "true", "shares": ["0.5", 1], "inner": {"size": "4", "rate": "1e-3"}})
    assert found == Outer(on=True, shares=(0.5, 1.0), inner=Inner(size=4, rate=0.001))
    assert isinstance(found.inner.size, int)


def test_an_unknown_setting_names_the_nearest() -> None:
    (line,) = refused({"nam": "y"})
    assert line.startswith("unknown setting 'nam': use one of name, kind, ")
    assert line.endswith("Did you mean 'name'?")
    (line,) = refused({"inner": {"sise": 3}}, "my.")
    assert line == "unknown setting 'my.inner.sise': use one of my.inner.size, my.inner.rate. Did you mean 'size'?"
    assert "Did you mean" not in refused({"zzzz": 1})[0]


def test_settings_that_are_read_elsewhere_are_unknown_here() -> None:
    assert "unknown setting 'elsewhere'" in refused({"elsewhere": 2})[0]


def test_all_mistakes_come_in_one_message() -> None:
    lines = refused({"nam": "y", "kind": "cow", "shares": ["x"], "inner": {"sise": 1, "rate": "fast"}, "extra": {"size": 0}}, "my.")
    text = "\n".join(lines)
    for words in (
        "'my.nam'",
        "'my.inner.sise'",
        "my.kind = 'cow'",
        "my.inner.rate = 'fast'",
        "my.shares = 'x'",
        "size is 0, but it must be",
    ):
        assert words in text
    assert len(lines) == 6


def test_a_refusal_of_the_constructor_says_where() -> None:
    assert refused({"inner": {"size": -1}}, "my.") == ["my.inner: size is -1, but it must be 1 or more"]


def test_a_dotted_key_finds_its_place() -> None:
    table: dict[str, Any] = {"a": {"b": 1}, "c": "none"}
    place(table, "a.d.e", 2)
    place(table, "a.b", 3)
    place(table, "c.x", 4)
    place(table, "f", 5)
    assert table == {"a": {"b": 3, "d": {"e": 2}}, "c": {"x": 4}, "f": 5}
