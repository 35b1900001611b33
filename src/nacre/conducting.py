"""Computing a study's runs: in parallel processes, each stored when it is done; begun ones are gone on with, or set aside."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from nacre import files
from nacre.errors import NacreError
from nacre.experiment import CONFIG
from nacre.limits import free_memory
from nacre.study import Store, Trial


@dataclass
class Progress:
    """How one run stands."""

    trial: Trial
    stage: int = 0
    stages: int = 0
    accuracy: float = math.nan
    error: str = ""
    elsewhere: bool = False
    """Another study computes it."""


def unfinished(store: Store) -> Path:
    """Where runs lie until they are finished."""
    return store.path.with_suffix(".unfinished")


def set_aside(trials: Sequence[Trial], store: Store) -> list[Trial]:
    """Let runs count no more, finished or begun, so that they are computed anew; returns those that were finished or begun.

    Raises:
        NacreError: one is under way in another study.
    """
    scratch = unfinished(store)
    found = []
    for trial in {trial.key: trial for trial in trials}.values():
        begun = (scratch / trial.key).exists()
        if not begun and not store.holds(trial.key):
            continue
        scratch.mkdir(parents=True, exist_ok=True)
        lock = FileLock(scratch / f"{trial.key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise NacreError(f"arm {trial.arm}, seed {trial.seed}, is being computed just now: stop that study first.") from None
        shutil.rmtree(scratch / trial.key, ignore_errors=True)  # what was begun would go on with what is wrong
        store.set_aside(trial.key)
        dismiss(lock)
        found.append(trial)
    with suppress(OSError):
        scratch.rmdir()
    return found


Show = Callable[[Sequence[Progress], Sequence[Progress]], None]
"""Hears of the runs that are under way and of those that just ended."""


def conduct(trials: Sequence[Trial], store: Store, jobs: int, threads: int, show: Show) -> list[Progress]:
    """Compute the trials that are not stored yet, in parallel processes; one that another study is computing is left to that one.

    Args:
        trials: same configurations are computed once.
        store: takes each when it is finished.
        jobs: processes at once.
        threads: of each.
        show: called every second, and whenever runs end, with the runs that are under way and those that just ended; where all that
            is left is with another study, with that.

    Returns:
        The runs that failed, with their errors.
    """
    there = store.keys()
    left = {trial.key: trial for trial in trials if trial.key not in there}
    scratch = unfinished(store)
    running: dict[str, Progress] = {}
    failed: list[Progress] = []
    processes: set[subprocess.Popen[str]] = set()
    waiting: dict[Future[Progress], FileLock] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while left or waiting:
                for trial, lock in free(left, scratch, store, jobs - len(waiting)):
                    waiting[pool.submit(one, trial, scratch / trial.key, threads, running, processes)] = lock
                if not waiting:
                    time.sleep(1.0)
                done, _ = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
                ended = [put_away(future.result(), waiting.pop(future), store, scratch) for future in done]
                failed += [progress for progress in ended if progress.error]
                awaited = [] if waiting or ended else [Progress(trial, elsewhere=True) for trial in left.values()]
                show([*running.values(), *awaited], ended)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(processes):
                process.kill()  # its folder holds what it has done
            raise
    with suppress(OSError):
        scratch.rmdir()  # unless a run is left in it, another study's or one that failed
    return failed


def free(left: dict[str, Trial], scratch: Path, store: Store, most: int) -> Iterator[tuple[Trial, FileLock]]:
    """Take up to `most` runs out of `left` that nobody else computes, each with its lock; those that another has stored go too."""
    for key in list(left):
        if most < 1:
            return
        scratch.mkdir(parents=True, exist_ok=True)
        lock = FileLock(scratch / f"{key}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        trial = left.pop(key)
        if store.holds(key):
            dismiss(lock)
        else:
            most -= 1
            yield trial, lock


def put_away(progress: Progress, lock: FileLock, store: Store, scratch: Path) -> Progress:
    """Store what a run left, unless it failed, and let it go."""
    if progress.error:
        lock.release()
    else:
        folder = scratch / progress.trial.key
        store.add(progress.trial, folder)
        shutil.rmtree(folder)
        dismiss(lock)
    return progress


def dismiss(lock: FileLock) -> None:
    """Let a stored run's lock go; who waits for it, or makes it anew, finds the run stored."""
    lock.release()
    with suppress(OSError):
        Path(lock.lock_file).unlink()


def one(trial: Trial, folder: Path, threads: int, running: dict[str, Progress], processes: set[subprocess.Popen[str]]) -> Progress:
    """Compute one run in a process of its own, and follow its lines."""
    progress = running[trial.key] = Progress(trial)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"given-{CONFIG}"
    files.write(config, trial.experiment.toml())
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "nacre.worker", str(config), str(folder)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        processes.add(process)
        assert process.stdout is not None
        for text in process.stdout:
            line = json.loads(text)
            progress.stage, progress.stages = line.get("stage", progress.stage), line.get("stages", progress.stages)
            progress.accuracy, progress.error = line.get("accuracy", progress.accuracy), line.get("error", "")
        code = process.wait()
        if code and not progress.error:
            errors.seek(0)
            progress.error = (errors.read().strip().splitlines() or [f"its process ended with code {code}"])[-1]
    processes.discard(process)
    del running[trial.key]
    return progress


def parallel(trial: Trial, cores: int, threads: int | None = None) -> tuple[int, int]:
    """How many runs at once, and threads for each, measured side by side to bring the most images per second on this machine's cores.

    Reads the trial's data, which leaves them decoded for the runs. No more runs are begun than free memory holds, where each is taken to
    need twice what this process does: beside data and a step's features it keeps a teacher, an optimiser's state and larger batches.

    Args:
        trial: that the others are like.
        cores: to share.
        threads: of each run, where they are given already.
    """
    import torch

    from nacre.training.runtime import Runtime
    from nacre.training.speed import CHOICES, measure

    runtime = Runtime(trial.experiment.hardware)
    stream = trial.experiment.stream()
    if runtime.device.type != "cpu" or cores == 1:
        return 1, threads or cores

    def at_once(threads: int) -> int:
        return max(1, min(cores // threads, free_memory() // max(1, 2 * runtime.peak_bytes())))

    if threads:
        return at_once(threads), threads
    hardware = trial.experiment.hardware
    choice = next(pair for pair in reversed(CHOICES) if hardware.precision in ("auto", pair[0]) and hardware.layout in ("auto", pair[1]))
    model = trial.experiment.method.whole(stream.source.spec)
    model.grow(len(stream.source.classes))

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        return measure(runtime, model, min(trial.experiment.method.optim.batch, 64), 3, choice)

    rates: dict[tuple[int, int], float] = {}
    before = torch.get_num_threads()
    for threads in reversed([*counts(cores)]):  # one run alone is the first, so that its need is known
        jobs = at_once(threads)
        with ThreadPoolExecutor(jobs) as pool:
            rates[jobs, threads] = jobs / max(pool.map(seconds, [threads] * jobs))
    torch.set_num_threads(before)
    return max(rates, key=rates.__getitem__)


def counts(cores: int) -> Iterator[int]:
    """1, 2, 4 ... up to all cores."""
    threads = 1
    while threads < cores:
        yield threads
        threads *= 2
    yield cores
