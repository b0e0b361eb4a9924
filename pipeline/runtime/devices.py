"""One GPU for each job on a host with several, held by a lock that dies with its holder.

Snakemake bounds how many jobs run at once, but tells none of them which device is its own. Here
each job takes a free one: a file for each place on a device, locked by `flock`, which the kernel
drops when the process ends in whatever way. Processes of others are seen by `nvidia-smi`, where
there is one.

The environment decides, and :func:`bound` documents how.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from ..errors import ConfigError, DataError

WAIT_SECONDS = 2.0
"""Between two looks for a free device."""

SAY_SECONDS = 60.0
"""Between two messages of a job that waits."""


@contextmanager
def bound(device: str) -> Iterator[str | None]:
    """Hold a place on one GPU while the block runs; gives the device's id.

    ``CUDA_VISIBLE_DEVICES`` names that one device alone, so enter before CUDA is used. Waits, and
    says so, while every device is busy. Does nothing (None) for any other ``device`` than "cuda",
    where no GPU is found, and under Slurm, which binds devices itself, unless ``LESS_KV_GPUS`` is
    set.

    ``LESS_KV_GPUS``: ids to choose from, with commas between; empty: none, so that nothing is done.
    Without it ``CUDA_VISIBLE_DEVICES``, else all that nvidia-smi lists.
    ``LESS_KV_JOBS_PER_GPU``: places on each device, 1 if not set.

    Raises:
        ConfigError: LESS_KV_JOBS_PER_GPU is no count.
        DataError: the folder of locks cannot be used.
    """
    devices = _candidates() if device == "cuda" else []
    if not devices:
        yield None
        return
    with ExitStack() as held:
        chosen = _wait_for_a_place(devices, _places(), held)
        # Numbers mean what nvidia-smi means by them, not CUDA's fastest first.
        changes = {"CUDA_VISIBLE_DEVICES": chosen, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        before = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes)
        try:
            yield chosen
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def _candidates() -> list[str]:
    """Return ids of the devices to choose from, numbers or UUIDs."""
    listed = os.environ.get("LESS_KV_GPUS")
    if listed is None and "SLURM_JOB_ID" in os.environ:
        return []
    if listed is None:
        listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return [index for index, _ in _nvidia_smi("--query-gpu=index,uuid")]
    return [name for name in (part.strip() for part in listed.split(",")) if name]


def _places() -> int:
    """Return jobs that may share a device."""
    text = os.environ.get("LESS_KV_JOBS_PER_GPU", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"LESS_KV_JOBS_PER_GPU={text}: it must be a whole number, 1 or more.")
    return int(text)


def _wait_for_a_place(devices: list[str], places: int, held: ExitStack) -> str:
    """Return the device of the first free place; ``held`` keeps it."""
    said = -SAY_SECONDS
    started = time.monotonic()
    while True:
        # First places first, so that devices are shared only when all are taken.
        for place in range(places):
            for name in devices:
                lock = _locked(_lock_file(name, place))
                if lock is not None and not _strangers(name, places):
                    held.enter_context(lock)
                    return name
                if lock is not None:
                    lock.close()
        waited = time.monotonic() - started
        if waited - said >= SAY_SECONDS:
            said = waited
            text = f"every GPU ({', '.join(devices)}) is busy: waiting, {waited:.0f} s so far"
            print(text, file=sys.stderr, flush=True)
        time.sleep(WAIT_SECONDS)


def _lock_file(device: str, place: int) -> Path:
    """Return the file that stands for a place, on this host.

    `flock` over a network is not relied on.
    """
    folder = Path(tempfile.gettempdir()) / f"less-gpus-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot use {folder}: {error.strerror or error}.") from error
    return folder / f"{device.replace('/', '_')}.{place}"


def _locked(path: Path) -> IO[str] | None:
    """Return the file, locked and holding this process's id until it is closed.

    None if another has it.
    """
    try:
        handle = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot use {path}: {error.strerror or error}.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        return None
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    return handle


def _strangers(device: str, places: int) -> set[str]:
    """Return processes on a device that hold none of its places."""
    cards = _nvidia_smi("--query-gpu=index,uuid")
    mine = {uuid for index, uuid in cards if device == index or uuid.startswith(device)}
    files = [_lock_file(device, place) for place in range(places)]
    known = {path.read_text(encoding="utf-8") for path in files if path.exists()}
    running = _nvidia_smi("--query-compute-apps=gpu_uuid,pid")
    return {pid for uuid, pid in running if uuid in mine} - known


def _nvidia_smi(query: str) -> list[list[str]]:
    """Return rows of an answer of nvidia-smi; none where it is not there or fails."""
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.split(", ") for line in done.stdout.splitlines() if line.count(", ") == 1]
