"""Commands for a model in use: teach it more, ask it, look at it, change it, hand it on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from nacre.commands.common import (
    DEVICE,
    JSON,
    LABEL,
    OUTPUT,
    PRECISION,
    QUIET,
    SET,
    SIZE,
    SKIP,
    WHAT,
    WHERE,
    assignment,
    leaving,
    plain_errors,
    remarks,
)
from nacre.errors import NacreError

if TYPE_CHECKING:
    from nacre.experiment import Experiment
    from nacre.lesson import Lesson, Outcome
    from nacre.terminal import Bar
    from nacre.training.learner import Learner

DROPPED = 3
"""Exit code where the old model stays because the new one forgot too much."""
MODEL = Annotated[Path, typer.Argument(help="A model file, such as model.nacre.")]
WAIT = Annotated[bool, typer.Option("--wait", help="Wait for another process that changes the model.", rich_help_panel=WHERE)]
NO_PREVIOUS = Annotated[bool, typer.Option("--no-previous", help="Do not keep the model as it was as MODEL.prev.", rich_help_panel=OUTPUT)]


def learn(
    model: Annotated[Path, typer.Argument(help="A model file; made where it is missing.")],
    images: Annotated[str, typer.Argument(help="A folder with a sub-folder per class, or another data set.")],
    check: Annotated[float, typer.Option(help="Share of the images that is held out to check on.", rich_help_panel=WHAT)] = 0.1,
    max_drop: Annotated[
        float | None, typer.Option(help="Keep the old model if old classes lose more points than this.", rich_help_panel=WHAT)
    ] = None,
    label: LABEL = None,
    skip_unreadable: SKIP = False,
    size: SIZE = None,
    method: Annotated[str | None, typer.Option(help="Of a new model: how to learn.", rich_help_panel=WHAT)] = None,
    backbone: Annotated[str | None, typer.Option(help="Of a new model: auto, small, resnet32 ...", rich_help_panel=WHAT)] = None,
    memory: Annotated[str | None, typer.Option(help="Of a new model: 2000, 20/class, 5MB ...", rich_help_panel=WHAT)] = None,
    epochs: Annotated[int | None, typer.Option(help="Of a new model: epochs of every stage.", rich_help_panel=WHAT)] = None,
    seed: Annotated[int | None, typer.Option(help="Of a new model.", rich_help_panel=WHAT)] = None,
    set_: SET = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be learnt, in what time; change nothing.")] = False,
    wait: WAIT = False,
    no_previous: NO_PREVIOUS = False,
    device: DEVICE = None,
    precision: PRECISION = None,
    quiet: QUIET = False,
    as_json: JSON = False,
) -> None:
    """Teach a model what a folder shows: new classes, and further images of known ones. Run again, it goes on where it was stopped."""
    first: dict[str, Any] = {
        "reading.size": size,
        "method.name": method,
        "method.backbone": backbone,
        "memory": memory,
        "seed": seed,
    }
    always: dict[str, Any] = {
        "reading.label": label,
        "reading.skip_unreadable": skip_unreadable or None,
        "hardware.device": device,
        "hardware.precision": precision,
    }
    with plain_errors():
        from nacre.holding import held
        from nacre.terminal import Bar

        screen = Console(stderr=True, quiet=quiet or as_json)
        bar = Bar(screen)
        extra = dict(assignment(text) for text in set_ or [])
        always |= {key: value for key, value in extra.items() if key.startswith(("hardware.", "checkpoint"))}
        first |= {key: value for key, value in extra.items() if key not in always}
        asked = {"check": check, "max_drop": max_drop, "plan": plan, "previous": not no_previous}
        with held(model, wait=wait), leaving(bar, screen, "run the same command again to go on"):
            conduct(model, described_lesson(model, images, first, always, epochs), bar, asked, (screen, as_json))


def described_lesson(model: Path, images: str, first: dict[str, Any], always: dict[str, Any], epochs: int | None) -> Experiment:
    """The settings of a lesson.

    Raises:
        NacreError: some are given that only a new model takes.
    """
    from nacre.experiment import Experiment
    from nacre.settings import place

    given = [name for name, value in {**first, "epochs": epochs}.items() if value is not None]
    if model.exists() and given:
        names = ", ".join(name.removeprefix("reading.").removeprefix("method.") for name in given)
        raise NacreError(f"{model} has its own settings, which stay: leave out {names}, or begin a new model.")
    table: dict[str, Any] = {"data": images}
    for key, value in {**first, **always}.items():
        if value is not None:
            place(table, key, value)
    experiment = Experiment.of(table)
    return experiment if epochs is None else experiment.lasting(epochs)


def conduct(model: Path, experiment: Experiment, bar: Bar, asked: dict[str, Any], where: tuple[Console, bool]) -> None:
    """Plan or give a lesson, and say what came of it."""
    from nacre.lesson import Lesson
    from nacre.telling import forecast_lines, lesson_lines, outcome_lines

    screen, as_json = where
    before = model.stat().st_size if model.exists() else 0
    lesson = Lesson(model, experiment, check=asked["check"], watch=bar)
    for line in [*remarks([*lesson.runtime.notes, *lesson.source.notes]), *([] if lesson.learnt else lesson_lines(lesson))]:
        screen.print(line, highlight=False, soft_wrap=True)
    answers = Console(soft_wrap=True, highlight=False, quiet=screen.quiet)
    if lesson.learnt is not None:
        lesson.clear()  # it may have been killed when the model was in place
        answers.print(f"{escape(str(model))} has learnt these images in its last lesson, {lesson.learnt['date'][:16]}: nothing to do")
        print_json(as_json, {"model": str(model), "learnt": False, "already": True, **lesson.learnt})
        return
    if asked["plan"]:
        from nacre.forecast import forecast

        expected = forecast(lesson)
        for line in forecast_lines(expected, before):
            answers.print(line)
        print_json(as_json, {**described(lesson), "seconds": expected.seconds, "bytes": expected.bytes})
        return
    bar.count, bar.plan = lesson.stage.index + 1, [0] * lesson.stage.index + [1]
    outcome = lesson.run(asked["max_drop"], previous=asked["previous"])
    bar.stop()
    for line in outcome_lines(lesson, outcome, before, model, asked):
        answers.print(line)
    print_json(as_json, {**described(lesson), **measured(outcome), "bytes": model.stat().st_size if model.exists() else 0})
    if not outcome.kept:
        raise typer.Exit(DROPPED)


def described(lesson: Lesson) -> dict[str, Any]:
    """What a lesson brings, as JSON."""
    stage = lesson.stage
    return {
        "model": str(lesson.path),
        "stage": stage.index + 1,
        "new": list(stage.names),
        "further": list(lesson.refreshed),
        "images": len(stage.train),
        "held_out": len(stage.test),
    }


def measured(outcome: Outcome) -> dict[str, Any]:
    """What a lesson came to, as JSON."""
    return {"learnt": outcome.kept, "before": outcome.before, "after": outcome.after, "seconds": outcome.seconds}


def print_json(wanted: bool, value: Any) -> None:
    """Print JSON where it is wanted."""
    if wanted:
        from nacre.files import as_json

        print(as_json(value, indent=1))  # noqa: T201 - the answer


def opened(model: Path, device: str | None = None, precision: str | None = None) -> tuple[Learner, dict[str, Any]]:
    """A model that knows a class, and what is written beside it.

    Raises:
        NacreError: there is none.
    """
    from nacre import modelfile, settings
    from nacre.training.runtime import Hardware, Runtime

    given = {name: value for name, value in (("device", device), ("precision", precision)) if value is not None}
    learner, more = modelfile.load(model, Runtime(settings.build(Hardware, given, "hardware.")))
    if not learner.classes:
        raise NacreError(f"{model} knows no class yet: let it learn first.")
    return learner, more


def predict(
    model: MODEL,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Images, folders, or - for a list on stdin.")],
    unknown: Annotated[bool, typer.Option("--unknown", help="Answer `unknown` where an image is unlike anything known.")] = False,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.", rich_help_panel=WHERE)] = 64,
    device: DEVICE = None,
    precision: PRECISION = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Lines of comma-separated values.", rich_help_panel=OUTPUT)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object per line.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Say what images show: class, confidence, and novelty (0 is usual, above 1 is unlike anything known)."""
    with plain_errors():
        from nacre.predicting import Predictor, listed
        from nacre.telling import FORMS

        if as_csv and as_json:
            raise NacreError("--csv and --json exclude one another: choose one.")
        learner, _ = opened(model, device, precision)
        predictor = Predictor(learner, top=top, batch=batch)
        if unknown and predictor.novelty is None:
            raise NacreError(f"{model} holds no image to calibrate novelty on: leave out --unknown, or let it learn with --check 0.1.")
        form = FORMS["csv" if as_csv else "json" if as_json else "text"](unknown)
        total = failed = 0
        out = typer.get_text_stream("stdout", encoding="utf-8", errors="replace")
        for line in form.heading():
            out.write(line + "\n")
        for answer in predictor.files(listed(paths)):
            out.write(form.line(answer) + "\n")
            out.flush() if total % batch == 0 else None
            total, failed = total + 1, failed + (answer.error is not None)
        out.flush()
        if failed:
            Console(stderr=True).print(f"[yellow]note[/] {failed:,} of {total:,} files could not be read", highlight=False)


def evaluate(
    model: MODEL,
    images: Annotated[str, typer.Argument(help="A folder with a sub-folder per class, or another data set.")],
    unknowns: Annotated[str | None, typer.Option(help="A folder of images of none of the model's classes.", rich_help_panel=WHAT)] = None,
    label: LABEL = None,
    skip_unreadable: SKIP = False,
    out: Annotated[Path | None, typer.Option(help="Where the report goes; by default MODEL-evaluation.html here.")] = None,
    device: DEVICE = None,
    as_json: JSON = False,
) -> None:
    """Measure a model on labelled images: accuracy by class, confusions, calibration, novelty; and write a report."""
    with plain_errors():
        from nacre import files
        from nacre.data.readers import Reading
        from nacre.evaluation.appraisal import appraise
        from nacre.evaluation.report import render_evaluation
        from nacre.lesson import labelled, unlabelled
        from nacre.telling import appraisal_lines
        from nacre.terminal import Bar

        screen = Console(stderr=True, quiet=as_json)
        learner, _ = opened(model, device)
        bar = Bar(screen)
        reading = Reading(label=label or "", skip_unreadable=skip_unreadable)
        samples, notes = labelled(images, learner, reading, bar.decoded)
        strange = None if unknowns is None else unlabelled(unknowns, learner, bar.decoded)
        for line in remarks(notes):
            screen.print(line, highlight=False)
        found = appraise(learner, samples, strange)
        target = out or Path(f"{model.stem}-evaluation.html")
        files.write(target, render_evaluation(found, learner.classes, {"model": str(model), "images": images, "unknowns": unknowns}))
        answers = Console(soft_wrap=True, highlight=False, quiet=as_json)
        for line in appraisal_lines(found, target):
            answers.print(line)
        print_json(as_json, {**found, "report": str(target)})


def inspect(
    model: MODEL,
    panel: Annotated[Path | None, typer.Option(help="Write a picture of exemplars, their reconstruction then and now.")] = None,
    as_json: JSON = False,
) -> None:
    """Show what a model knows, what it is made of, and how it came to be."""
    with plain_errors():
        from nacre.evaluation import panel as panels
        from nacre.inspection import inspection
        from nacre.telling import inspection_parts

        learner, more = opened(model, "cpu")
        found = inspection(learner, more, model)
        if panel is not None:
            shown = panels.panel(learner)
            if shown is None:
                raise NacreError(f"{model} has no decoder or no exemplars, so there is no picture to draw: leave out --panel.")
            panels.draw(shown, learner.classes, panel)
            found["panel"] = str(panel)
        console = Console(quiet=as_json, highlight=False)
        for part in inspection_parts(found):
            console.print(part)
        print_json(as_json, found)


def changed(model: Path, wait: bool, previous: bool, change: Callable[[Learner], Any], history: str) -> tuple[Any, int, int]:
    """Change a model in its file: what the change said, and the bytes before and after."""
    from nacre.lesson import rewritten

    return rewritten(model, change, history, wait=wait, previous=previous)


def drop(
    model: MODEL,
    classes: Annotated[list[str], typer.Argument(metavar="CLASS...", help="Names of the classes.")],
    wait: WAIT = False,
    no_previous: NO_PREVIOUS = False,
    as_json: JSON = False,
) -> None:
    """Forget classes on purpose: head, exemplars, statistics. What remains is checked again."""
    with plain_errors():
        from nacre import editing
        from nacre.telling import change_lines

        said, was, now = changed(model, wait, not no_previous, lambda learner: editing.drop(learner, classes), f"drop {', '.join(classes)}")
        for line in change_lines(said, was, now):
            Console(soft_wrap=True, highlight=False, quiet=as_json).print(line)
        if not no_previous:
            text = f"[yellow]note[/] {model.name}.prev still knows them: delete it, or say --no-previous"
            Console(stderr=True, quiet=as_json).print(text, highlight=False)
        print_json(as_json, {"dropped": classes, "before": said.before, "after": said.after, "bytes": now})


def rename(
    model: MODEL,
    old: Annotated[str, typer.Argument(help="Name of a class.")],
    new: Annotated[str, typer.Argument(help="Its new name.")],
    wait: WAIT = False,
) -> None:
    """Call a class otherwise."""
    with plain_errors():
        from nacre import editing

        changed(model, wait, False, lambda learner: editing.rename(learner, old, new), f"rename {old} to {new}")
        Console(soft_wrap=True, highlight=False).print(f"{escape(old)} is called {escape(new)} now")


def shrink(
    model: MODEL,
    to: Annotated[str, typer.Option(help="Most bytes of the file, such as 5MB.")],
    wait: WAIT = False,
    no_previous: NO_PREVIOUS = False,
    as_json: JSON = False,
) -> None:
    """Make a model smaller: half precision, then fewer exemplars; and say what it cost in accuracy."""
    with plain_errors():
        from nacre import editing, files
        from nacre.data.cache import amount
        from nacre.telling import change_lines

        most = amount(to)
        fixed = files.header_bytes(model)
        said, was, now = changed(model, wait, not no_previous, lambda learner: editing.shrink(learner, most, fixed), f"shrink to {to}")
        for line in change_lines(said, was, now):
            Console(soft_wrap=True, highlight=False, quiet=as_json).print(line)
        print_json(as_json, {"before": said.before, "after": said.after, "bytes": now})


def export(
    model: MODEL,
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="Where the ONNX file goes.")],
    quantize: Annotated[bool, typer.Option("--quantize", help="Compute with 8-bit integers, and measure what is lost.")] = False,
    as_json: JSON = False,
) -> None:
    """Write a model as ONNX: uint8 RGB images of any number to class probabilities and novelty, with nothing of nacre needed."""
    with plain_errors():
        from nacre.export import export as write
        from nacre.telling import export_lines

        learner, _ = opened(model, "cpu")
        found = write(learner, out, quantize=quantize)
        for line in export_lines(found, out):
            Console(soft_wrap=True, highlight=False, quiet=as_json).print(line)
        print_json(as_json, found)
