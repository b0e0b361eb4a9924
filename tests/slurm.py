"""A real Slurm of one node for tests: own configuration, state folder and ports, no root needed."""

import getpass
import os
import re
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])

CONF = """
ClusterName=less
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
GresTypes=gpu
AccountingStorageType=accounting_storage/none
# Who takes more memory than was asked for is killed; looked at every second.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 Gres=gpu:fake:2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP DefMemPerCPU=500
"""


def missing():
    """Why a Slurm cannot be started here, or nothing."""
    absent = [name for name in DAEMONS if shutil.which(name, path=SBIN) is None]
    return f"not installed: {', '.join(absent)} (Debian: slurm-wlm, munge)" if absent else ""


def free_ports(count):
    """Ports that nobody listens on, held together so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@dataclass(frozen=True)
class Task:
    """A line of the queue; memory in MB."""

    job: str
    rule: str
    state: str
    gpus: int
    memory: int
    minutes: int

    @classmethod
    def read(cls, line):
        job, comment, state, gpus, memory, limit, _ = line.split("|")
        rule = re.match(r"(?:rule_)?(.*?)(?:_wildcards_.*)?$", comment)[1]
        count = re.search(r"gpu[^,]*?:(\d+)$", gpus)
        days, _, clock = limit.rpartition("-")
        parts = [int(part) for part in clock.split(":")]
        seconds = sum(part * 60**place for place, part in enumerate(reversed(parts)))
        megabytes = float(memory[:-1]) * {"M": 1, "G": 1024}[memory[-1]]
        return cls(
            job, rule, state, int(count[1]) if count else 0, int(megabytes),
            int(days or 0) * 1440 + seconds // 60,
        )  # fmt: skip


class Slurm:
    """Daemons whose files are all in ``folder``."""

    def __init__(self, folder):
        self.folder = folder
        self.processes = []

    def environment(self, base=os.environ):
        """Variables by which Slurm's commands find these daemons."""
        path = os.pathsep.join([str(self.folder / "bin"), base["PATH"]])
        return {**base, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def start(self):
        for name in ("state", "spool", "gpu", "bin"):
            (self.folder / name).mkdir(parents=True)
        # Inside a job the executor plugin drops every SLURM_ variable, where this Slurm is too.
        srun = self.folder / "bin" / "srun"
        srun.write_text(
            f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {shutil.which("srun")} "$@"\n'
        )
        srun.chmod(0o755)
        for number in range(2):
            (self.folder / "gpu" / f"g{number}").symlink_to("/dev/null")
        host = socket.gethostname().split(".")[0]
        values = {"host": host, "user": getpass.getuser(), "folder": self.folder}
        (self.folder / "slurm.conf").write_text(CONF.format(ports=free_ports(2), **values))
        (self.folder / "gres.conf").write_text(
            f"NodeName={host} Name=gpu Type=fake File={self.folder}/gpu/g[0-1]\n"
        )
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        names = {"key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        words = [f"--{option}={self.folder}/munge.{name}" for option, name in names.items()]
        words += [f"--socket={self.folder}/munge.socket", "--force", "--foreground"]
        self.spawn("munged", *words)
        self.wait_for("munge.socket", (self.folder / "munge.socket").exists)
        self.spawn("slurmctld", "-D", "-i")
        self.spawn("slurmd", "-D")
        self.wait_for("an idle node", lambda: "idle" in self.run("sinfo", "--noheader", "-o", "%T"))

    def spawn(self, name, *words):
        with (self.folder / f"{name}.out").open("w") as out:
            self.processes.append(
                subprocess.Popen(
                    [shutil.which(name, path=SBIN), *words],
                    env=self.environment(), stdout=out, stderr=out,
                )
            )  # fmt: skip

    def wait_for(self, what, ready, seconds=30):
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, f"{what} did not come:\n{self.logs()}"
            assert all(p.poll() is None for p in self.processes), self.logs()
            time.sleep(0.2)

    def logs(self):
        paths = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in paths)

    def run(self, *words):
        done = subprocess.run(words, env=self.environment(), capture_output=True, text=True)
        return done.stdout

    def tasks(self):
        """Each job or array task that the queue knows, ended ones too."""
        columns = ["JobArrayID", "Comment", "State", "tres-per-job", "MinMemory", "TimeLimit"]
        shown = ",".join(f"{column}:|" for column in columns)
        words = ["squeue", "--array", "--states=all", "--noheader", "-O", shown]
        return [Task.read(line) for line in self.run(*words).splitlines()]

    def stop(self):
        self.run("scancel", "--user", getpass.getuser())
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def slurm(folder: Path):
    """A running Slurm, stopped when the block ends."""
    cluster = Slurm(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
