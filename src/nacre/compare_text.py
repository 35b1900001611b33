"""A comparison in words and numbers: Markdown, JSON, and what must be known beside the table."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nacre.compare import Comparison
from nacre.evaluation.measures import READ, measure
from nacre.evaluation.numerals import shown
from nacre.evaluation.paired import Difference

EXACT = 1e-9
"""What is nearer to zero than that is zero, but for the last bits of floating point."""


def level(value: float, name: str) -> str:
    """A measure's number: shares in percent, others with three digits."""
    scale = measure(name).scale
    return shown(scale * value, ".1f" if scale > 1 else ",.3g")


def interval(gap: Difference, name: str) -> str:
    """A difference, in points where it is one of shares, with its 95 % interval where it has one."""
    scale = measure(name).scale
    form = "+.1f" if scale > 1 else "+,.3g"
    middle = signed(scale * gap.mean, form)
    return f"{middle} [{signed(scale * gap.low, form)}, {signed(scale * gap.high, form)}]" if gap.n > 1 else middle


def signed(value: float, form: str) -> str:
    """A number that keeps its sign where it is rounded to zero: it tells whether an interval holds zero."""
    text = shown(value, form)
    if text[0] in "0." and abs(value) > EXACT:
        return ("+" if value > 0 else "−") + text  # noqa: RUF001 - a typographic minus
    return text


def chance(gap: Difference) -> str:
    """The corrected p; a dash for a single pair."""
    if gap.n < 2:
        return "–"  # noqa: RUF001 - a typographic dash
    if gap.adjusted == 1:
        return "1"
    text = f"{gap.adjusted:.{2 if gap.adjusted >= 0.1 else 3}f}".lstrip("0")
    return "<.001" if text == ".000" else text


def better(gap: Difference, name: str) -> bool | None:
    """Whether a difference is for the better, beyond its interval; None where it may be chance, or neither side is better."""
    less = measure(name).less
    if less is None or not (gap.low > 0 or gap.high < 0):
        return None
    return (gap.mean < 0) == less


def markdown(found: Comparison) -> str:
    """The table as it stands in a page."""
    several = len({one.data for one in found.entries}) > 1
    heads = ["arm", *(["data"] if several else []), "pairs"]
    heads += [text for name in found.asked.measures for text in (measure(name).title, "difference", "p")]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for one in found.entries:
        cells = [f"`{found.name(one)}`", *([one.data] if several else []), str(len(one.seeds))]
        for name, gap in one.differences.items():
            cells += [level(one.means[name][0], name), interval(gap, name), chance(gap)]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def remarks(found: Comparison) -> list[str]:
    """What must be known beside the table: whose answers, what else differs, what is left out."""
    told = []
    if found.asked.readout:
        others = [name.replace("_", " ") for name in found.asked.measures if name not in READ]
        beside = f"; {', '.join(others)}: of each method's declared readout" if others else ""
        told.append(f"answers of {found.asked.readout.replace('_', ' ')}{beside}")
    pairs = sum(len(one.seeds) for one in found.entries)
    for counts, says in (
        (found.differing, "these also differ in how they were computed"),
        (found.unrecorded, "these do not record of both runs how they were computed"),
    ):
        what = ", ".join(f"{what} in {number}" for what, number in counts.items())
        told += [f"of {pairs} pairs, {says}: {what}"] if counts else []
    for one in found.entries:
        fewer = [f"{measure(name).title} of {gap.n}" for name, gap in one.differences.items() if 0 < gap.n < len(one.seeds)]
        told += [f"of the {len(one.seeds)} pairs of {found.name(one)}, not all have a number: {', '.join(fewer)}"] if fewer else []
    if found.left_out:
        told.append(f"without a pair: {', '.join(found.left_out)}")
    return told


def plain(found: Comparison) -> dict[str, Any]:
    """The same as JSON; shares in [0, 1]."""
    return {
        "title": found.title,
        "baseline": found.baseline,
        "readout": found.asked.readout,
        "left_out": list(found.left_out),
        "differing": found.differing,
        "unrecorded": found.unrecorded,
        "arms": [
            {
                "arm": one.arm,
                "against": one.against,
                "data": one.data,
                "seeds": list(one.seeds),
                "measures": {
                    name: {**asdict(gap), "of_arm": one.means[name][0], "of_baseline": one.means[name][1], "values": list(one.values[name])}
                    for name, gap in one.differences.items()
                },
            }
            for one in found.entries
        ],
    }
