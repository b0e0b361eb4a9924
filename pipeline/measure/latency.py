"""Time prompts and their continuations by every method, in turns, in one process.

Each repetition builds a method's cache anew, warms it up, and times one prompt and its
continuation, from the prompt's arrival to the last token. What runs out of memory is a result:
a row without times. Prompts are random tokens and kernels are untrained: neither changes how long
anything takes.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel

from ..cache import LessCache
from ..decoding.engine import SHORT, Engine
from ..decoding.full_cache import FullCache
from ..experiment.latency import FORMS, Contender, Setting
from ..experiment.methods import FULL, METHODS, label_of, policy_title
from ..policies import Policy, get_policy
from ..runtime.machine import hardware
from ..runtime.progress import Progress
from ..storage.files import save_table
from .operators import (
    Kernels,
    Operator,
    bounded_attention,
    copy_bandwidth,
    feature_maps,
    full_attention,
    products,
    timed,
    untrained_kernels,
)
from .step_parts import step_parts

VERSIONS = ("torch", "triton", "transformers", "numba")
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""How torch's message begins or ends where an allocation failed."""


@dataclass(frozen=True)
class Bench:
    """What all contenders share."""

    model: PreTrainedModel
    setting: Setting
    prompt: torch.Tensor
    kernels: Mapping[str, Callable[[], Kernels]]

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return self.model.device

    @property
    def room(self) -> int:
        """Tokens of a prompt and its continuation."""
        return self.setting.prompt + self.setting.new_tokens

    def policy(self, contender: Contender) -> Policy | None:
        """Return the policy of a contender; None for the full cache."""
        if contender.policy is None or contender.budget is None:
            return None
        return get_policy(contender.policy, contender.budget)

    def kernels_of(self, contender: Contender) -> Kernels | None:
        """Return kernels of all layers, or None; made anew: no one else's memory holds them."""
        make = self.kernels.get(contender.method)
        return None if make is None else make()

    def cache(self, contender: Contender) -> FullCache | LessCache:
        """Return a fresh cache."""
        policy = self.policy(contender)
        if policy is None:
            return FullCache(self.model.config, self.room, self.device)
        return LessCache(self.model.config, policy, self.kernels_of(contender))


def by_engine(bench: Bench, contender: Contender) -> dict[str, float]:
    """Time a whole continuation by the decode loop, and a step of it, in seconds."""
    new = bench.setting.new_tokens
    engine = Engine(bench.model, bench.cache(contender), bench.setting.batch)
    engine.warm_up(bench.prompt, new)
    engine.generate(bench.prompt, new)
    read, steps = engine.seconds
    return {"seconds": read + steps, "step_seconds": steps / (new - 1)}


def by_generate(bench: Bench, contender: Contender) -> dict[str, float]:
    """Time a whole continuation by the library's `generate`, its own full cache if any."""

    def run(prompt: torch.Tensor, new_tokens: int) -> float:
        cache = None if contender.method == FULL else bench.cache(contender)
        wait(bench.device)
        started = time.perf_counter()
        bench.model.generate(  # type: ignore[operator]
            prompt,
            attention_mask=torch.ones_like(prompt),
            past_key_values=cache,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        wait(bench.device)
        return time.perf_counter() - started

    run(bench.prompt if bench.device.type == "cuda" else bench.prompt[:, :SHORT], 2)
    return {"seconds": run(bench.prompt, bench.setting.new_tokens)}


RUNS: dict[str, Callable[[Bench, Contender], dict[str, float]]] = dict(
    zip(FORMS, (by_engine, by_generate), strict=True)
)


def wait(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Give back what is not held any more, so that the next peak is its own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif os.name == "posix" and Path("/proc/self/clear_refs").exists():
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far


def peak_bytes(device: torch.device) -> float:
    """Return the most memory held since :func:`release`: of torch on a GPU, else of the process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def within_memory(run: Callable[[], Any], device: torch.device) -> Any:
    """Return what ``run`` gives, or None where memory did not suffice; any other error is one."""
    release(device)
    try:
        return run()
    except (MemoryError, torch.OutOfMemoryError):
        return None
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        return None


def repeated(
    bench: Bench, contenders: Sequence[Contender], forms: Sequence[str], count: int
) -> Iterator[dict[str, Any]]:
    """Yield rows of every repetition, contenders in turns; who ran out of memory is left out."""
    progress = Progress("latency", count * len(forms) * len(contenders))
    failed = set()
    for repetition in range(count):
        for form in forms:
            for contender in contenders:
                if (form, contender) in failed:
                    continue
                run = RUNS[form]
                times = within_memory(lambda: run(bench, contender), bench.device)  # noqa: B023
                row = asdict(contender) | {
                    "train_sparsity": contender.train_sparsity,
                    "form": form,
                    "repetition": repetition,
                    "peak_bytes": None if times is None else peak_bytes(bench.device),
                }
                if times is None:
                    failed.add((form, contender))
                yield row | (times or {"seconds": None})
                progress.step(f"{name_of(contender)}, {form}")


def name_of(contender: Contender) -> str:
    """Name a contender for people."""
    label = label_of(contender.method, contender.train_sparsity)
    if contender.policy is None or contender.sparsity is None:
        return label
    return f"{label}, {policy_title(contender.policy)} {100 * contender.sparsity:g} %"


def parts_of(bench: Bench, contender: Contender) -> dict[str, float]:
    """Return seconds of a step by part; empty for the full cache, which is nothing but decoding."""
    policy = bench.policy(contender)
    if policy is None:
        return {}
    model, batch, room = bench.model, bench.setting.batch, bench.room
    parts = within_memory(
        lambda: step_parts(model, policy, bench.kernels_of(contender), batch, room), bench.device
    )
    return {f"part.{part}": seconds for part, seconds in (parts or {}).items()}


def operator_rows(
    bench: Bench, contenders: Sequence[Contender], steps: dict[Contender, float]
) -> Iterator[dict[str, Any]]:
    """Yield each operator's bytes, operations and time; then whole decode steps and their floor."""
    model, batch = bench.model, bench.setting.batch

    def attention(contender: Contender) -> Operator:
        policy = bench.policy(contender)
        if policy is None:
            return full_attention(model, batch, bench.room)
        name, kernels = f"attention, {name_of(contender)}", bench.kernels_of(contender)
        return bounded_attention(name, model, policy, kernels, batch, bench.room)

    makers: dict[Any, Callable[[], Operator]] = {"products": partial(products, model, batch)}
    makers |= {contender: partial(attention, contender) for contender in contenders}

    def maps(method: str) -> Operator:
        own = bench.kernels[method]()
        return feature_maps(f"feature maps, {METHODS[method].title}", model, own, batch)

    makers |= {method: partial(maps, method) for method in bench.kernels}
    moved, operations = {}, {}
    for key, make in makers.items():

        def run(make: Callable[[], Operator] = make) -> dict[str, Any]:
            operator = make()
            seconds = timed({"": operator.run}, bench.device)[""]
            return {
                "operator": operator.name, "bytes": operator.moved,
                "operations": operator.operations, "seconds": seconds,
            }  # fmt: skip

        row = within_memory(run, bench.device)
        if row is not None:
            moved[key], operations[key] = row["bytes"], row["operations"]
            yield row
    for contender, seconds in steps.items():
        if contender in moved and "products" in moved:
            yield {
                "operator": f"decode step, {name_of(contender)}",
                "bytes": moved["products"] + moved[contender],
                "operations": operations["products"] + operations[contender],
                "seconds": seconds,
            }


def conditions(device: torch.device) -> dict[str, Any]:
    """Return what the times were measured on and under."""
    processor = hardware()["processor"]
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else processor,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "clocks": gpu_clocks(device) if gpu else cpu_clock(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def gpu_clocks(device: torch.device) -> str:
    """Return clocks as they are, the highest there can be, and the driver."""
    fields = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,driver_version"
    index = device.index or 0
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", f"--id={index}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    sm, memory, most_sm, most_memory, driver = (x.strip() for x in done.stdout.split(","))
    return f"cores {sm} of {most_sm}, memory {memory} of {most_memory}; driver {driver}"


def cpu_clock() -> str:
    """Return the processor's clock as it is."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    clocks = [line.split(":")[1].strip() for line in lines if line.startswith("cpu MHz")]
    return f"{float(clocks[0]):.0f} MHz" if clocks else "unknown"


def is_of(table: pd.DataFrame, contender: Contender) -> pd.Series:
    """Tell which rows are a contender's."""
    same = table["method"] == contender.method
    for key in ("policy", "sparsity"):
        value = getattr(contender, key)
        same &= table[key].isna() if value is None else table[key] == value
    return same


@torch.no_grad()
def measure_latency(
    model: PreTrainedModel,
    setting: Setting,
    contenders: Sequence[Contender],
    sizes: Mapping[str, int],
    *,
    repetitions: int,
    forms: Sequence[str],
    seed: int,
    label: Mapping[str, Any],
    out: Path,
    operators: Path,
) -> None:
    """Write times, one row a repetition, and what they are made of, one row an operator.

    Args:
        model: enabled for a bounded cache.
        sizes: of kernels, as of :func:`pipeline.kernels.get_kernel`.
        forms: of :data:`pipeline.experiment.latency.FORMS`.
        seed: of the prompt.
        label: columns that every row carries.
    """
    generator = torch.Generator().manual_seed(seed)
    size = (setting.batch, setting.prompt)
    prompt = torch.randint(0, model.config.vocab_size, size, generator=generator)
    named = {c.method: METHODS[c.method].kernel for c in contenders if c.method != FULL}
    kernels = {
        method: partial(untrained_kernels, name, model, **sizes)
        for method, name in named.items()
        if name is not None
    }
    bench = Bench(model, setting, prompt.to(model.device), kernels)
    before = conditions(bench.device)
    table = pd.DataFrame(list(repeated(bench, contenders, forms, repetitions)))
    measured = table[table["form"] == FORMS[0]].dropna(subset="seconds")
    steps = {
        contender: float(rows["step_seconds"].median())
        for contender in contenders
        if len(rows := measured[is_of(measured, contender)])
    }
    for contender in steps:
        for part, seconds in parts_of(bench, contender).items():
            table.loc[is_of(table, contender), part] = seconds
    rows = pd.DataFrame(list(operator_rows(bench, contenders, steps)))
    bandwidth = copy_bandwidth(bench.device)
    common = {**label, **before, "copy_bytes_per_second": bandwidth}
    save_table(operators, rows.assign(**common, repetitions=repetitions))
    save_table(out, table.assign(**label), "latency")
