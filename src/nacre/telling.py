"""What a person reads of a model in use: lines and tables for the terminal, and the forms of answers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from nacre.editing import Change
from nacre.forecast import Forecast
from nacre.lesson import Lesson, Outcome
from nacre.predicting import Answer
from nacre.terminal import bytes_text, percent

UNKNOWN = "unknown"


def some(names: Sequence[str], most: int = 6) -> str:
    """A few names, and how many more."""
    return ", ".join(escape(name) for name in names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def plural(count: int, what: str) -> str:
    """`1 class`, `2 classes`, `1,000 images`."""
    return f"{count:,} {what}" + ("" if count == 1 else "es" if what.endswith("s") else "s")


def lesson_lines(lesson: Lesson) -> list[str]:
    """What a lesson brings."""
    stage = lesson.stage
    brings = []
    if stage.names:
        brings.append(f"{plural(len(stage.names), 'new class')} ({some(stage.names)})")
    if lesson.refreshed:
        brings.append(f"further images of {plural(len(lesson.refreshed), 'known class')} ({some(lesson.refreshed)})")
    counts = f"{plural(len(stage.train), 'image')} to learn from, {len(stage.test):,} held out"
    return [f"[bold]{escape(str(lesson.path))}[/], stage {stage.index + 1}: {', '.join(brings)}; {counts}"]


def forecast_lines(expected: Forecast, before: int) -> list[str]:
    """What a lesson will take."""
    seconds = expected.seconds
    time = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    was = f", now {bytes_text(before)}" if before else ""
    return [f"about {time} of training on this machine; the model will have about {bytes_text(expected.bytes)}{was}. Nothing was changed."]


def outcome_lines(lesson: Lesson, outcome: Outcome, before: int, model: Path, asked: Mapping[str, Any]) -> list[str]:
    """What a lesson came to."""
    rows = [("before", outcome.before), ("after", outcome.after)] if lesson.stage.known else [("after", outcome.after)]
    lines = [
        f"{name:<7} all [bold cyan]{percent(found['all'])}[/]  old {percent(found['old'])}  new {percent(found['new'])}"
        for name, found in rows
        if any(value is not None for value in found.values())
    ]
    if not lines:
        lines = ["no image was held out, so accuracy was not measured"]
    if not outcome.kept:
        return [
            *lines,
            f"[bold red]kept the old model[/]: its classes would have lost {outcome.drop:.1f} points, more than {asked['max_drop']:g}",
        ]
    was = f", was {bytes_text(before)}" if before else ""
    kept = f"; as it was: {escape(model.name)}.prev" if before and asked["previous"] else ""
    count = plural(len(lesson.learner.classes), "class")
    return [*lines, f"{escape(str(model))} knows {count} now ({bytes_text(model.stat().st_size)}{was}, {outcome.seconds:.1f} s{kept})"]


class Form(Protocol):
    """How answers are written."""

    def heading(self) -> Iterator[str]:
        """Lines before the first answer."""

    def line(self, answer: Answer) -> str:
        """One answer."""


def flat(text: str) -> str:
    """A text without line breaks and tabs."""
    return " ".join(text.split())


@dataclass(frozen=True)
class Text:
    """Tab-separated for people: path, class and confidence of each named class, novelty."""

    unknown: bool

    def heading(self) -> Iterator[str]:
        """None."""
        return iter(())

    def line(self, answer: Answer) -> str:
        """One answer."""
        if answer.error is not None:
            return f"{answer.path}\tcannot be read: {flat(answer.error)}"
        classes = [f"{name} {100 * share:.1f} %" for name, share in answer.classes]
        if self.unknown and answer.unknown:
            classes = [UNKNOWN]
        novelty = [] if answer.novelty is None else [f"novelty {answer.novelty:.2f}"]
        return "\t".join([answer.path, *classes, *novelty])


@dataclass(frozen=True)
class Csv:
    """Comma-separated values: a line per named class, or one with the reason."""

    unknown: bool

    def heading(self) -> Iterator[str]:
        """Names of the columns."""
        return iter(["path,rank,class,confidence,novelty,error"])

    def line(self, answer: Answer) -> str:
        """One answer; several lines for several classes."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        novelty = "" if answer.novelty is None else f"{answer.novelty:.4f}"
        if answer.error is not None:
            writer.writerow([answer.path, "", "", "", "", flat(answer.error)])
        elif self.unknown and answer.unknown:
            writer.writerow([answer.path, 1, UNKNOWN, "", novelty, ""])
        else:
            for rank, (name, share) in enumerate(answer.classes, 1):
                writer.writerow([answer.path, rank, name, f"{share:.6f}", novelty, ""])
        return out.getvalue().rstrip("\n")


@dataclass(frozen=True)
class Json:
    """A JSON object per line."""

    unknown: bool

    def heading(self) -> Iterator[str]:
        """None."""
        return iter(())

    def line(self, answer: Answer) -> str:
        """One answer."""
        if answer.error is not None:
            return json.dumps({"path": answer.path, "error": answer.error})
        classes = [{"class": name, "confidence": round(share, 6)} for name, share in answer.classes]
        named = {"class": None if self.unknown and answer.unknown else answer.classes[0][0], "confidence": round(answer.classes[0][1], 6)}
        told = {"novelty": None if answer.novelty is None else round(answer.novelty, 4)}
        told |= {"unknown": answer.unknown} if self.unknown else {}
        return json.dumps({"path": answer.path, **named, **told, **({"top": classes} if len(classes) > 1 else {})})


FORMS: dict[str, Callable[[bool], Form]] = {"text": Text, "csv": Csv, "json": Json}


def appraisal_lines(found: Mapping[str, Any], report: Path) -> list[str]:
    """What an evaluation found."""
    shares, calibration = found["accuracy"], found["calibration"]["all"]
    lines = [
        f"{plural(found['images'], 'image')}: all [bold cyan]{percent(shares['all'])}[/]  old {percent(shares['old'])}  "
        f"new {percent(shares['new'])}  [dim]calibration error {100 * calibration['ece']:.1f} %[/]"
    ]
    wrong = [f"{escape(pair['truth'])} taken for {escape(pair['answer'])} ({pair['images']})" for pair in found["confused"][:5]]
    lines += [f"most confused: {', '.join(wrong)}"] if wrong else []
    novelty = found["novelty"]
    if novelty is not None:
        if novelty["called_unknown"] is not None:
            told, false = 100 * novelty["called_unknown"], 100 * found["called_unknown"]
            lines.append(f"called unknown: {told:.1f} % of {plural(novelty['images'], 'unknown image')}, {false:.1f} % of the known ones")
        lines += [
            f"  {name:<15} AUROC {score['auroc']:.3f}  unknown taken for known where 95 % of known are: {percent(score['fpr95'])}"
            for name, score in novelty["scores"].items()
        ]
    return [*lines, f"report   {escape(str(report))}"]


def inspection_parts(found: Mapping[str, Any]) -> list[RenderableType]:
    """A model described."""
    image = found["image"]
    colour = "grey" if image["channels"] == 1 else "colour"
    half = ", stored at half precision" if found["half_precision"] else ""
    parts = "  ".join(f"{name.replace('_', ' ')} {bytes_text(size)}" for name, size in found["parts"].items())
    lines = [
        f"[bold]{escape(found['file'])}[/]  {bytes_text(found['bytes'])}{half}",
        f"[dim]{parts}[/]",
        f"method [cyan]{escape(found['method']['name'])}[/], {found['backbone']} with {found['parameters']:,} parameters, "
        f"memory {found['memory']}, {colour} images of {image['height']} x {image['width']}",
        "",
    ]
    classes = table_of(("class", "stage", "images", "exemplars", "held out", "drift"))
    for row in found["classes"]:
        drift = "-" if row["drift"] is None else f"{row['drift']:+.3f}"
        classes.add_row(escape(row["name"]), *(f"{row[name]:,}" for name in ("stage", "images", "exemplars", "held_out")), drift)
    past = table_of(("", "when", "what", "all", "old", "new"), words=3)
    for row in found["history"]:
        when = (row["date"] or "-")[:16].replace("T", " ")
        if "change" in row:
            past.add_row("", when, escape(row["change"]), "", "", "")
            continue
        what = [f"+ {some(row['new'], 4)}"] if row.get("new") else []
        what += [f"further {some(row['further'], 4)}"] if row.get("further") else []
        shares = (percent(row.get("after", {}).get(name)) for name in ("all", "old", "new"))
        past.add_row(f"stage {row.get('stage', '?')}", escape(when), "; ".join(what), *shares)
    note = "drift: growth of the unexplained variance of a class's exemplar since it came"
    return ["\n".join(lines), classes, f"[dim]{note}[/]\n", past]


def table_of(heads: Sequence[str], words: int = 1) -> Table:
    """A plain table whose first columns hold words and whose others hold numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < words else "right", no_wrap=number >= words, overflow="fold")
    return table


def change_lines(said: Change, was: int, now: int) -> list[str]:
    """What a change did."""
    lines = [f"{bytes_text(was)} before, {bytes_text(now)} now"]
    if said.after is None:
        return [*lines, "no held-out image to check what remains"]
    before, after = (percent(share).strip() for share in (said.before, said.after))
    return [*lines, f"accuracy on held-out images of what remains: {before} before, {after} now"]


def export_lines(found: Mapping[str, Any], out: Path) -> list[str]:
    """What was exported."""
    lines = [
        f"{escape(str(out))}  {bytes_text(found['bytes'])}, {plural(found['classes'], 'class')}; input {found['input']}, "
        f"outputs {', '.join(found['outputs'])}",
        f"checked in ONNX Runtime on {plural(found['checked'], 'image')}: probabilities within {found['difference']:.1e} of nacre's",
    ]
    if found["accuracy"] is not None and found["quantized"]:
        before, after = (percent(found["accuracy"][name]).strip() for name in ("before", "after"))
        lines.append(f"accuracy on {found['measured']}: {before} before, {after} as int8")
    return lines
