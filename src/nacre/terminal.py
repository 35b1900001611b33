"""What a person sees while a run goes on: progress on stderr, results on stdout; no terminal, no bar."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from nacre.compare import Comparison
from nacre.compare_text import better, chance, interval, remarks
from nacre.conducting import Progress as Doing
from nacre.data.cache import Entry
from nacre.data.stream import Stage, Stream
from nacre.study import Study
from nacre.training.method import Method
from nacre.training.phases import Watch


class Remaining(ProgressColumn):
    """Time left in the whole run, from the speed so far."""

    def render(self, task: Task) -> Text:
        """Minutes and seconds, or a dash before there is a speed."""
        left = task.fields.get("left")
        if left is None:
            return Text("-:-- left", style="dim")
        minutes, seconds = divmod(int(left), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{f'{hours}:{minutes:02d}' if hours else minutes}:{seconds:02d} left", style="cyan")


class Bar(Watch):
    """A progress bar with stage, epoch, images per second and the time left.

    Args:
        console: on stderr.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.plan: list[int] = []
        self.count = 0
        self.seconds = self.images = 0.0
        self._last = 0.0
        self._progress: Progress | None = None
        self._drawn = 0.0

    def expect(self, stream: Stream, method: Method) -> None:
        """Learn what is to come, for the time left."""
        self.plan = [len(stage.train) * method.optim_of(stage).epochs for stage in stream]
        self.count = len(stream)

    def fit(self, stage: Stage, phase: int, samples: int, epochs: int) -> None:
        """Start a bar for this fit."""
        self.stop()
        self._stage, self._samples, self._epochs, self._done = stage, samples, epochs, 0
        self._progress = Progress(
            TextColumn("[bold]stage {task.fields[stage]}"),
            BarColumn(bar_width=28, complete_style="cyan", finished_style="cyan"),
            TextColumn("epoch {task.fields[epoch]}"),
            TextColumn("[dim]{task.fields[speed]}"),
            Remaining(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task(
            "", total=samples * epochs, stage=f"{stage.index + 1}/{self.count}", epoch=f"1/{epochs}", speed="", left=None
        )
        self._progress.start()
        self._last = time.monotonic()

    def decoded(self, done: int, total: int) -> None:
        """Show how decoding goes."""
        if self._progress is None:
            self._progress = Progress(
                TextColumn("[bold]decoding"),
                BarColumn(bar_width=28, complete_style="cyan", finished_style="cyan"),
                MofNCompleteColumn(),
                TextColumn("images"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
                disable=not self.console.is_terminal or os.environ.get("LOCAL_RANK", "0") != "0",
            )
            self._task = self._progress.add_task("", total=total)
            self._progress.start()
        self._progress.update(self._task, completed=done)
        if done == total:
            self._progress.stop()
            self._progress = None

    def step(self, images: int) -> None:
        """Advance, redrawing a few times a second at most."""
        self._done += images
        now = time.monotonic()
        if self._progress is None or now - self._drawn < 0.1:
            return
        self._drawn = now
        seconds = max(self.seconds + now - self._last, 1e-9)
        speed = (self.images + self._done) / seconds
        total = self._samples * self._epochs
        left = (total - self._done + sum(self.plan[self._stage.index + 1 :]) * total / max(1, self.plan[self._stage.index])) / speed
        epoch = min(self._epochs, self._done // max(1, self._samples) + 1)
        self._progress.update(self._task, completed=self._done, epoch=f"{epoch}/{self._epochs}", speed=f"{speed:,.0f} images/s", left=left)

    def concern(self, text: str) -> None:
        """Show it above the bar."""
        self.console.print(f"[yellow]note[/] {escape(text)}", highlight=False)

    def stop(self) -> None:
        """Take the bar away, so that a result can be printed."""
        if self._progress is not None:
            self.seconds += time.monotonic() - self._last
            self.images += self._done
            self._progress.stop()
            self._progress = None


def percent(share: float | None) -> str:
    """A share in [0, 1] as `97.2 %`; a dash for none."""
    return "     -" if share is None else f"{100 * share:5.1f} %".rjust(6)


def stage_line(result: dict[str, Any], total: int) -> str:
    """One stage in a line: accuracy on all, old and new classes, and what it brought."""
    names = ", ".join(escape(name) for name in result["classes"][:6]) + (" …" if len(result["classes"]) > 6 else "")
    return (
        f"[bold]stage {result['stage']}/{total}[/]  all [bold cyan]{percent(result['accuracy'])}[/]  old {percent(result['old'])}  "
        f"new {percent(result['new'])}  [dim]{result['seconds']:6.1f} s  + {names}[/]"
    )


def closing_lines(summary: dict[str, Any], paths: Sequence[tuple[str, str]]) -> list[str]:
    """The run in a few lines: the three numbers it is known by, and where its files are."""
    forgotten = summary["forgetting"]
    lines = [
        "",
        f"average incremental accuracy  [bold cyan]{percent(summary['average_incremental'])}[/]",
        f"last accuracy                 [bold cyan]{percent(summary['last'])}[/]",
        f"forgetting                    [bold cyan]{'     -' if forgotten is None else f'{100 * forgotten:5.1f}'}[/] points",
        "",
    ]
    return lines + [f"{name:<8} {escape(path)}" for name, path in paths]


def bytes_text(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def cache_table(entries: Sequence[Entry], folder: Path, limit: int) -> Table:
    """The decoded data sets, the latest used first."""
    total = sum(entry.bytes for entry in entries)
    table = Table(
        box=None,
        padding=(0, 2, 0, 0),
        header_style="bold",
        caption=f"{bytes_text(total)} of {bytes_text(limit)} in {escape(str(folder))}",
        caption_justify="left",
    )
    table.add_column("data set", overflow="fold")
    for column in ("images", "pixels", "bytes"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("last used", no_wrap=True)
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        pixels = "x".join(map(str, entry.form)) or "unfinished"
        table.add_row(f"{escape(entry.origin)}\n[cyan]{entry.key}[/]", f"{entry.images:,}", pixels, bytes_text(entry.bytes), used)
    return table


COLUMNS = ("runs", "average", "last", "forgetting", "probe", "seconds", "carried")
PUBLISHED = ("published", "difference")
"""Of a study's table."""


def study_heads(study: Study) -> list[str]:
    """Heads of the columns; what was published has its own where the study names any, whether it was run or not."""
    return ["arm", *(["data"] if len(study.data) > 1 else []), *COLUMNS, *(PUBLISHED if study.published else ())]


def study_cells(study: Study, entry: dict[str, Any]) -> list[str]:
    """What stands below the heads from `average` on; a dash for what was not run or not published; published average/last, or words."""
    cells = [points(entry[name]) for name in ("average_incremental", "last", "forgetting", "probe")]
    cells += [f"{entry['seconds'][0]:,.0f}", bytes_text(entry["carried_bytes"][0])] if entry["runs"] else ["-", "-"]
    if study.published:
        given, apart = entry.get("published", {}), entry.get("difference", {}) if entry["runs"] else {}
        words = given.get("source", "") if not entry.get("difference") else ""
        cells += [words or pair(given, "{:.1f}"), pair(apart, "{:+.1f}")]
    return cells


def pair(numbers: Mapping[str, Any], form: str) -> str:
    """Average and last accuracy in one cell, as far as they are there."""
    average, last = (form.format(numbers[name]) if name in numbers else "-" for name in ("average", "last"))
    return average if last == "-" else f"{average}/{last}"


def study_sources(study: Study) -> list[str]:
    """Where the published numbers come from: a line per source."""
    arms: dict[tuple[str, str], list[str]] = {}
    for arm, given in study.published.items():
        names = [name for name in ("average", "last") if name in given]
        if names:
            arms.setdefault((f"published {'/'.join(names)}", given["source"]), []).append(arm)
    return [f"{shown}, {', '.join(names)}: {source}" for (shown, source), names in arms.items()]


def study_table(study: Study, entries: Sequence[dict[str, Any]], running: Sequence[Doing]) -> Table:
    """What is finished of a study, and what is under way."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", caption_justify="left")
    for head in study_heads(study):
        words = head in ("arm", "data")
        table.add_column(head, no_wrap=True, justify="left" if words else "right", style="cyan" if head == "arm" else "")
    for entry in entries:
        data = [escape(entry["data"])] if len(study.data) > 1 else []
        table.add_row(escape(entry["arm"]), *data, f"{entry['runs']}/{len(study.seeds)}", *study_cells(study, entry))
    under_way = [f"{escape(doing.trial.arm)} seed {doing.trial.seed} {whereabouts(doing)}" for doing in running]
    lines = [escape(line) for line in study_sources(study)] + ([f"under way: {', '.join(under_way)}"] if under_way else [])
    table.caption = "\n".join(lines) or None
    return table


def whereabouts(doing: Doing) -> str:
    """How far a run is, as far as that is known here."""
    return "in another study" if doing.elsewhere else f"stage {doing.stage + 1}/{doing.stages or '?'}"


def comparison_table(found: Comparison) -> Table:
    """Arms against a baseline: difference with its interval, and corrected p, of every measure."""
    several = len({one.data for one in found.entries}) > 1
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", caption_justify="left")
    for column in ("arm", *(("data",) if several else ())):
        table.add_column(column, no_wrap=True, style="cyan" if column == "arm" else "")
    for column in ("pairs", *(text for name in found.asked.measures for text in (name.replace("_", " "), "p"))):
        table.add_column(column, justify="right", no_wrap=True)
    for one in found.entries:
        cells = [escape(found.name(one)), *([escape(one.data)] if several else []), str(len(one.seeds))]
        for name, gap in one.differences.items():
            colour = {True: "green", False: "red", None: "default"}[better(gap, name)]
            cells += [f"[{colour}]{escape(interval(gap, name))}[/]", f"[dim]{chance(gap)}[/]"]
        table.add_row(*cells)
    told = [f"differences to {escape(found.baseline)}, of shares in points; 95 % intervals over the pairs; p: permutation test after Holm"]
    told += ["a single pair has neither interval nor p"] if any(len(one.seeds) == 1 for one in found.entries) else []
    told += [escape(remark) for remark in remarks(found)]
    table.caption = "; ".join(told)
    return table


def ended_line(doing: Doing) -> str:
    """A run that ended."""
    how = f"[red]{escape(doing.error)}[/]" if doing.error else f"last accuracy [bold cyan]{percent(doing.accuracy)}[/]"
    return f"[cyan]{escape(doing.trial.arm)}[/] {escape(doing.trial.data)} seed {doing.trial.seed}  {how}"


def points(value: tuple[float, float]) -> str:
    """Mean ± standard deviation of shares, in percent."""
    middle, around = (100 * number for number in value)
    if middle != middle:
        return "-"
    return f"{middle:.1f} ± {around:.1f}" if around == around else f"{middle:.1f}"


def study_markdown(study: Study, entries: Sequence[dict[str, Any]]) -> str:
    """The same table as it stands in a page."""
    heads = study_heads(study)
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for entry in entries:
        data = [entry["data"]] if len(study.data) > 1 else []
        lines.append([f"`{entry['arm']}`", *data, str(entry["runs"]), *study_cells(study, entry)])
    below = [f"\n{line}." for line in study_sources(study)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *below])


def methods_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The methods, what they need and what they carry."""
    caption = (
        "carried from stage to stage: model, exemplars and statistics\nafter 100 classes in ten stages, by a ResNet-32 at 32 x 32 pixels\n"
        "> more, by what the images need   — not found: the backbone is another's"
    )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", caption=caption, caption_justify="left")
    table.add_column("method", no_wrap=True, style="cyan")
    table.add_column("family", min_width=15)
    table.add_column("needs", min_width=13)
    table.add_column("carried", justify="right", no_wrap=True)
    table.add_column("paper", style="dim")
    for row in rows:
        carried = "—" if row["carried_bytes"] is None else bytes_text(row["carried_bytes"])
        start = "> " if row["varying"] else ""
        table.add_row(row["name"], row["family"], ", ".join(row["needs"]) or "—", start + carried, row["paper"])
    return table


def portrait_lines(found: dict[str, Any], sheet: Path) -> list[RenderableType]:
    """A data set in a few lines and a table of its classes."""
    channels = ", ".join(f"{mean:.3f} ± {std:.3f}" for mean, std in zip(found["mean"], found["std"], strict=True))
    height, width = found["size"]
    lines: list[RenderableType] = [
        f"[bold]{found['classes']}[/] classes, [bold]{found['train']:,}[/] training and [bold]{found['test']:,}[/] test images",
        f"{height} x {width} pixels, {'colour' if found['channels'] == 3 else 'grey'}; mean ± std of channels {channels}",
        f"images per class: {found['fewest']:,} to {found['most']:,}",
    ]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("class", overflow="ellipsis", max_width=44)
    table.add_column("train", justify="right")
    table.add_column("test", justify="right")
    for name, train, test in found["counts"][:30]:
        table.add_row(escape(name), f"{train:,}", f"{test:,}")
    if len(found["counts"]) > 30:
        table.add_row(f"[dim]… and {len(found['counts']) - 30} more[/]", "", "")
    lines.append(table)
    lines += [f"[yellow]note[/] {escape(note)}" for note in found["notes"]]
    return [*lines, f"contact sheet {escape(str(sheet))}"]
