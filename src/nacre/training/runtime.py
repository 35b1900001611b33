"""Device, precision, memory layout and processes: the only module that knows the hardware (Lightning Fabric)."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from nacre.errors import NacreError
from nacre.limits import busy_elsewhere, free_memory
from nacre.models.norm import BatchNorm
from nacre.training.precision import computing

if TYPE_CHECKING:
    from lightning_fabric import Fabric

M = TypeVar("M", bound=nn.Module)
TRIM, MMAP = -1, -3
"""`mallopt`'s numbers of two thresholds, in bytes: free memory at the heap's end beyond the first goes back to the system, and so does
every freed block from the second on."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Where and how to compute; `auto` is settled by `Runtime` and by `nacre.training.speed`."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto`: the accelerator where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16` computes in bfloat16, on any processor (`nacre.training.precision`), and keeps weights in float32; `auto`: what is
    measured to be faster."""
    layout: Literal["auto", "channels-last", "contiguous"] = "auto"
    """Order of the images in memory; `auto`: what is measured to be faster."""
    compile: bool = False
    """Compile the model with `torch.compile`: worth it for long runs."""
    processes: int = 1
    """Processes that share every batch, on as many devices; under torchrun its number counts."""
    threads: int = 0
    """CPU threads per process; 0: `OMP_NUM_THREADS`, else the cores shared among the processes."""

    def __post_init__(self) -> None:
        if self.processes < 1 or self.threads < 0:
            raise ValueError(f"processes is {self.processes} and threads is {self.threads}, but they must be at least 1 and 0")


class Runtime:
    """One process's view of the machine.

    Args:
        hardware: where and how to compute; precision and layout `auto` count as fp32 and contiguous until
            `nacre.training.speed.settle` has measured.

    Raises:
        NacreError: the device is not there.
    """

    def __init__(self, hardware: Hardware | None = None) -> None:
        hardware = hardware or Hardware()
        torchrun = {name: int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE") if name in os.environ}
        world = torchrun.get("WORLD_SIZE", hardware.processes)
        local = torchrun.get("LOCAL_WORLD_SIZE", world)
        device = available(hardware.device)
        self._chosen = bool(hardware.threads)
        threads = hardware.threads or default_threads(local)
        self.hardware = replace(hardware, device=device, processes=world, threads=threads)
        self._local = local
        torch.set_num_threads(threads)
        if device == "cpu":
            keep_freed()
        if device == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
        self.world: int = world
        self.rank: int = self.fabric.global_rank if world > 1 else 0
        self.device: torch.device = self.fabric.device if world > 1 else alone(device)
        self._compiled: dict[int, Callable[..., Any]] = {}

    @cached_property
    def fabric(self) -> Fabric:
        """What starts and joins processes; made when it is first needed, because it is slow to import."""
        from lightning_fabric import Fabric

        quiet()
        world, local = self.hardware.processes, self._local
        fabric = Fabric(
            accelerator=self.hardware.device,
            devices=local,
            num_nodes=world // local,
            strategy="ddp" if world > 1 else "auto",
        )
        fabric.launch()
        return fabric

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def notes(self) -> list[str]:
        """What about this machine, at this moment, will make a run slow, unless its number of threads was chosen.

        After every operation threads wait for the last among them, which on a core that is in use elsewhere is a slice of time away.
        Fewer of them are not taken unasked: what they compute would differ in its last bits from one day to the next.
        """
        cores, threads = os.cpu_count() or 1, self.hardware.threads
        if self.device.type != "cpu" or self.world > 1 or threads == 1 or self._chosen:
            return []
        busy = min(busy_elsewhere(), cores)
        if busy + threads <= cores:
            return []
        best = max(1, cores - busy)
        return [
            f"{busy} of {cores} cores {'is' if busy == 1 else 'are'} in use elsewhere, and threads wait for the slowest among them: "
            f"with OMP_NUM_THREADS={best} before the command it may be many times as fast as with {threads}"
        ]

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in the run's precision."""
        return computing(self.hardware.precision, self.device)

    @property
    def format(self) -> torch.memory_format:
        """The run's layout of images and convolutions."""
        return torch.channels_last if self.hardware.layout == "channels-last" else torch.contiguous_format

    def agree(self, numbers: list[float]) -> list[float]:
        """The mean of each number over the processes, so that all decide alike."""
        mean = torch.tensor(numbers, device=self.device, dtype=torch.float32)
        if self.world > 1:
            mean = cast(Tensor, self.fabric.all_reduce(mean, reduce_op="mean"))
        return [float(number) for number in mean]

    def place(self, module: M) -> M:
        """Move a module to the device, in the run's memory layout; its batch norms see the batches of all processes."""
        for part in module.modules():
            if isinstance(part, BatchNorm):
                part.total = total if self.world > 1 else None
        return reformatted(module.to(self.device), self.format)

    def images(self, pixels: Tensor) -> Tensor:
        """Move uint8 images [B, C, H, W] to the device."""
        return pixels.to(self.device, non_blocking=True)

    def pinned(self, pixels: Tensor) -> Tensor:
        """Images in memory from which CUDA copies while it computes; elsewhere as they are."""
        return pixels.pin_memory() if self.device.type == "cuda" else pixels

    def forward(self, model: nn.Module) -> Callable[..., Any]:
        """How to call a model in training: itself, or its compiled form."""
        if not self.hardware.compile:
            return model
        if id(model) not in self._compiled:
            self._compiled = {id(model): torch.compile(model)}
        return self._compiled[id(model)]

    def average(self, gradients: Iterable[Tensor | None]) -> None:
        """Replace every gradient by its mean over the processes, in one message."""
        if self.world > 1:
            there = [gradient for gradient in gradients if gradient is not None]
            flat = cast(Tensor, self.fabric.all_reduce(torch.cat([gradient.reshape(-1) for gradient in there]), reduce_op="mean"))
            for gradient, mean in zip(there, flat.split([gradient.numel() for gradient in there]), strict=True):
                gradient.copy_(mean.view(gradient.shape))

    def together(self) -> None:
        """Wait until all processes have come here."""
        if self.world > 1:
            self.fabric.barrier()

    def free_bytes(self) -> int:
        """Memory that may still be used on the device, limits of the process and of its control group included."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else free_memory()

    def peak_bytes(self) -> int:
        """The most memory used so far: the device's on CUDA, else the process's; 0 where the system does not tell."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else peak_memory()

    def describe(self) -> str:
        """The device's name for people."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{self.device.type}, {self.hardware.threads} threads" if self.device.type == "cpu" else self.device.type


def alone(device: str) -> torch.device:
    """The device of a process that works alone."""
    return torch.device(device, 0) if device in ("cuda", "mps") else torch.device(device)


class Total(torch.autograd.Function):
    """The sum over processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        """Add up a tensor of one shape."""
        whole = mine.clone()
        torch.distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Add up the gradients."""
        return Total.forward(ctx, gradient)


def total(mine: Tensor) -> Tensor:
    """Sum a tensor over the processes, with its gradient."""
    return cast(Tensor, Total.apply(mine))  # type: ignore[no-untyped-call]


def reformatted(module: M, form: torch.memory_format) -> M:
    """A module with its convolutions in a memory layout."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.to(memory_format=form)  # type: ignore[call-overload]
    return module


def available(device: str) -> Literal["cpu", "cuda", "mps"]:
    """The device itself, or for `auto` the best that is there.

    Raises:
        NacreError: it is not there.
    """
    there: dict[Literal["cuda", "mps", "cpu"], bool] = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    for name, present in there.items():
        if present and device in ("auto", name):
            return name
    raise NacreError(f"device {device!r} is not there: use auto, {' or '.join(name for name, present in there.items() if present)}.")


def default_threads(processes: int) -> int:
    """The cores shared among the processes of this machine; `OMP_NUM_THREADS` wins, but torchrun sets it to 1 unasked."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) and "TORCHELASTIC_RUN_ID" not in os.environ:
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else torch.get_num_threads()
    return max(1, cores // processes)


def keep_freed() -> None:
    """Let this process keep what it frees, up to 2 GiB at the heap's end, where glibc gives memory out.

    A step frees the maps that the next step needs, and what goes back to the system in between comes again page by page, zeroed, which
    costs about a tenth of the step. Thresholds that the environment sets win.
    """
    tuned = os.environ.get("GLIBC_TUNABLES", "")
    given = any(f"malloc.{name}=" in tuned or f"MALLOC_{name.upper()}_" in os.environ for name in ("mmap_threshold", "trim_threshold"))
    if sys.platform != "linux" or given:
        return
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        # older glibc refuses more than 32 MiB; TRIM alone would hold MMAP still at 128 kB, and every larger block would go back
        if mallopt(MMAP, 2**28) or mallopt(MMAP, 2**25):
            mallopt(TRIM, 2**31 - 1)


def peak_memory() -> int:
    """The most bytes that this process held so far; 0 where the system does not tell."""
    if os.name != "posix":
        return 0
    with suppress(OSError, ValueError, IndexError):  # Linux; there getrusage begins with the peak of whoever started the process
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def quiet() -> None:
    """Keep Fabric's remarks off the terminal: a run prints what it has to say itself."""
    for name in ("lightning_fabric", "lightning.fabric", "lightning_fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning_fabric")
