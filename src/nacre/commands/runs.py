"""Commands for runs and studies: compare ways to learn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from nacre.commands.common import (
    DEVICE,
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
    slug,
    suffixes,
)
from nacre.errors import NacreError

if TYPE_CHECKING:
    from nacre.conducting import Progress
    from nacre.experiment import Experiment, Run
    from nacre.study import Study, Trial


def run(
    recipe: Annotated[Path | None, typer.Argument(help="TOML file with settings; options on the command line win over it.")] = None,
    data: Annotated[
        str | None, typer.Option(help="A folder with a sub-folder per class, or another path, or digits.", rich_help_panel=WHAT)
    ] = None,
    size: SIZE = None,
    label: LABEL = None,
    skip_unreadable: SKIP = False,
    protocol: Annotated[
        str | None, typer.Option(help="Classes per stage, such as b0-inc2; see `nacre protocols`.", rich_help_panel=WHAT)
    ] = None,
    method: Annotated[str | None, typer.Option(help="How to learn, see `nacre methods`.", rich_help_panel=WHAT)] = None,
    backbone: Annotated[str | None, typer.Option(help="Network: auto, small, resnet32 ...", rich_help_panel=WHAT)] = None,
    head: Annotated[str | None, typer.Option(help="linear or cosine.", rich_help_panel=WHAT)] = None,
    memory: Annotated[str | None, typer.Option(help="Exemplars: 2000, 20/class, 5MB, none, all.", rich_help_panel=WHAT)] = None,
    reconstruction: Annotated[
        float | None, typer.Option(help="Weight of the reconstruction term, with any method.", rich_help_panel=WHAT)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of every stage.", rich_help_panel=WHAT)] = None,
    seed: Annotated[int | None, typer.Option(help="Of class order, initialisation and sampling.", rich_help_panel=WHAT)] = None,
    set_: SET = None,
    device: DEVICE = None,
    precision: PRECISION = None,
    processes: Annotated[int | None, typer.Option(help="Processes that share every batch.", rich_help_panel=WHERE)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run's files; by default a new one in runs/.", rich_help_panel=WHERE)
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the killed run in this folder.", rich_help_panel=WHERE)] = None,
    quiet: QUIET = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print metrics.json at the end, and nothing else.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Learn a stream of classes stage by stage, and write a report."""
    flat = {
        "data": data,
        "reading.size": size,
        "reading.label": label,
        "reading.skip_unreadable": skip_unreadable or None,
        "protocol": protocol,
        "memory": memory,
        "seed": seed,
        "method.name": method,
        "method.backbone": backbone,
        "method.head": head,
        "method.decoding.weight": reconstruction,
        "hardware.device": device,
        "hardware.precision": precision,
        "hardware.processes": processes,
    }
    given = {key: value for key, value in flat.items() if value is not None}
    with plain_errors():
        if resume is not None and (recipe or given or epochs or set_ or out):
            raise NacreError("--resume goes on with a run as it was described: leave the other settings out.")
        experiment, folder = reopened(resume) if resume is not None else described(recipe, given, epochs, set_ or [], out)
        conduct(experiment, folder, quiet=quiet, as_json=as_json)


def described(
    recipe: Path | None, given: dict[str, Any], epochs: int | None, extra: list[str], out: Path | None
) -> tuple[Experiment, Path]:
    """The experiment that recipe and options describe, and a folder that holds no run."""
    from nacre.experiment import Experiment, read_toml
    from nacre.settings import place

    table = read_toml(recipe) if recipe is not None else {}
    for key, value in [*given.items(), *(assignment(text) for text in extra)]:
        place(table, key, value)
    experiment = Experiment.of(table)
    if epochs is not None:
        experiment = experiment.lasting(epochs)
    if out is None:
        data = slug(experiment.data)
        names = (f"{data}-{table.get('method', {}).get('name', 'reconstruction')}-seed{experiment.seed}{n}" for n in suffixes())
        out = next(path for path in (Path("runs") / name for name in names) if not path.exists())
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise NacreError(f"{out} holds something already: give a new folder, or go on with a killed run by --resume {out}.")
    return experiment, out


def reopened(folder: Path) -> tuple[Experiment, Path]:
    """The experiment of a run's folder."""
    from nacre.experiment import CONFIG, Experiment

    if not (folder / CONFIG).is_file():
        raise NacreError(f"{folder} holds no run (no {CONFIG} in it): give the folder that `nacre run` printed.")
    return Experiment.load(folder / CONFIG), folder


def conduct(experiment: Experiment, folder: Path, *, quiet: bool, as_json: bool) -> None:
    """Run an experiment, show how it goes, and write its report."""
    from nacre.experiment import METRICS, MODEL, REPORT, Run, write_report
    from nacre.terminal import Bar, closing_lines, stage_line

    talk = not quiet and not as_json
    screen, answers = Console(stderr=True, quiet=not talk), Console(soft_wrap=True, highlight=False)
    bar = Bar(screen)
    session: Run = Run(experiment, folder, bar)
    talk = talk and session.runtime.main
    bar.expect(session.stream, session.experiment.method)
    for line in [*remarks([*session.runtime.notes, *session.stream.source.notes]), heading(session)] if talk else []:
        screen.print(line, highlight=False)
    for result in session.history if talk else []:
        answers.print(stage_line({**result, "seconds": 0.0}, session.total))
    with leaving(bar, screen, f"go on with: nacre run --resume {folder}"):
        for result in session.stages():
            bar.stop()
            if talk:
                answers.print(stage_line(result, session.total))
    if session.runtime.main:
        write_report(folder)
        paths = [("report", str(folder / REPORT)), ("model", str(folder / MODEL))]
        text = (folder / METRICS).read_text() if as_json else None
        for line in closing_lines(session.metrics()["results"]["summary"], paths) if talk else []:
            answers.print(line)
        if text is not None:
            print(text)  # noqa: T201 - the answer


def heading(session: Run) -> str:
    """What runs, in a line."""
    from nacre.modelfile import method_settings

    setting, hardware = session.experiment, session.runtime.hardware
    name = method_settings(setting.method)["name"]
    return (
        f"[bold]{escape(name)}[/] on {escape(setting.data)}, {setting.protocol}: {session.total} stages, memory {setting.memory}, "
        f"seed {setting.seed} [dim]({session.runtime.describe()}, {hardware.precision}, {hardware.layout})[/]"
    )


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    joint: Annotated[Path | None, typer.Option(help="Folder of a joint run of the same data and seed, for intransigence.")] = None,
) -> None:
    """Write a run's report.html again."""
    with plain_errors():
        from nacre.experiment import write_report

        print(write_report(folder, joint))  # noqa: T201 - the answer


def study(
    path: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="Arms, data and seeds over a common base.")],
    arm: Annotated[list[str] | None, typer.Option(help="Only this arm; may be given again.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Only this data set of the study; may be given again.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only this seed; may be given again.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at once; found by measuring, or with --threads as many as the cores hold.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of each run; found by measuring, or with --jobs the cores shared among them.")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="SQLite file of finished runs; by default the study's own.")] = None,
    set_aside: Annotated[
        bool,
        typer.Option(
            "--set-aside", help="Let these stored runs count no more, also in other studies that share them; the next call computes them."
        ),
    ] = False,
    show: Annotated[bool, typer.Option("--show", help="Compute nothing; show what is stored.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table as Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Compute a study's runs in parallel processes, each stored when it is done and never computed twice; go on after a kill."""
    with plain_errors():
        from dataclasses import replace

        from nacre import conducting
        from nacre import study as studies
        from nacre.terminal import study_markdown, study_table

        plan = studies.Study.load(path)
        plan = replace(plan.among(arm or (), data or ()), store=store or plan.store, seeds=tuple(seed or plan.seeds))
        trials = plan.trials()
        if show and not plan.store.exists() and not plan.published:
            raise NacreError(f"{plan.store} is not there: no run of this study is finished. Leave out --show to compute them.")
        if set_aside:
            if not plan.store.exists():
                raise NacreError(f"{plan.store} is not there: no run of this study is finished, so there is none to set aside.")
            there = conducting.set_aside(trials, studies.Store(plan.store))
            told = [" ".join(filter(None, ("set aside:", trial.arm, trial.data, f"seed {trial.seed}"))) for trial in there]
            Console(stderr=True).print(escape("\n".join(told) or "there was none of these runs to set aside"), highlight=False)
        failed = [] if show or set_aside else computed(plan, trials, jobs, threads)
        entries = studies.table(plan, studies.stored(plan.store, trials))
        if as_json:
            from nacre.files import as_json as text

            print(text({"study": plan.name, "arms": entries}, indent=1))  # noqa: T201 - the answer
        elif markdown:
            print(study_markdown(plan, entries))  # noqa: T201 - the answer
        else:
            wide = Console()
            Console(width=None if wide.is_terminal else 400).print(study_table(plan, entries, []))
        if failed:
            raise NacreError("\n".join(f"{doing.trial.arm}, seed {doing.trial.seed}: {doing.error}" for doing in failed))


def computed(plan: Study, trials: Sequence[Trial], jobs: int | None, threads: int | None) -> list[Progress]:
    """Compute what is not stored of a study, and show how it goes; returns the runs that failed."""
    import os

    from rich.live import Live

    from nacre import conducting
    from nacre import study as studies
    from nacre.terminal import ended_line, study_table

    kept = studies.Store(plan.store)
    there = kept.keys()
    left = [trial for trial in trials if trial.key not in there]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if left and jobs is None:
        jobs, threads = conducting.parallel(left[0], cores, threads)
    jobs = jobs or 1
    threads = threads or max(1, cores // jobs)
    screen = Console(stderr=True)
    how = f"{len(left)} are left, {jobs} at once with {threads} threads each; finished ones go to" if left else "all are stored in"
    screen.print(f"{len(trials)} runs, {how} {escape(str(plan.store))}")
    finished, waits = studies.table(plan, kept.rows(trials)), False
    with Live(console=screen, auto_refresh=False, transient=True) as live:

        def draw(running: Sequence[Progress], ended: Sequence[Progress]) -> None:
            nonlocal finished, waits
            for doing in ended:
                screen.print(ended_line(doing), highlight=False)
            if not waits and any(doing.elsewhere for doing in running):
                waits = True
                screen.print("what is left is under way in another study: waiting for it")
            finished = studies.table(plan, kept.rows(trials)) if ended else finished
            if screen.is_terminal:
                live.update(study_table(plan, finished, running), refresh=True)

        return conducting.conduct(trials, kept, jobs, threads, draw)


def protocols() -> None:
    """List the ways in which classes may arrive."""
    from rich.table import Table

    from nacre.data.protocols import NAMED

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    for name, what in NAMED.items():
        table.add_row(f"[cyan]{name}[/]", escape(what))
    Console().print(table)


def methods(as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """List the methods: family, what each needs, the bytes it carries, paper."""
    from nacre.evaluation.cost import carried_bytes
    from nacre.methods import METHODS
    from nacre.terminal import methods_table
    from nacre.training.method import NEEDS

    carried = carried_bytes()
    rows = [
        {
            "name": name,
            "family": cls.family,
            "needs": [need for need in NEEDS if need in cls.needs],
            "carried_bytes": carried.get(name),
            "varying": cls.varying,
            "memory": str(cls.budget),
            "paper": cls.paper,
            "what": (cls.__doc__ or "").splitlines()[0],
        }
        for name, cls in METHODS.items()
    ]
    if as_json:
        print(json.dumps(rows, indent=1))  # noqa: T201 - the answer
    else:
        Console().print(methods_table(rows))
