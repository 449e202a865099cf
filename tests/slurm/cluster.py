"""A SLURM cluster of one node on this machine, in its own folder: starts and stops munged, slurmctld and slurmd."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")

_CONFIGURATION = """
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/finished.txt
MailProg=/bin/true
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
ReturnToService=2
KillWait=5
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 Port={node_port} CPUs={cpus} RealMemory=8000 Gres=gpu:2
PartitionName=debug Nodes=ALL Default=YES
"""


def why_not_available() -> str | None:
    """The reason why SLURM cannot be started here, or None if it can."""
    if missing := [name for name in PROGRAMS if which(name) is None]:
        return f"no {missing[0]} (apt-get install slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "slurmd must be started by root"


def which(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin")


class Cluster:
    """Started by `with`, and stopped with its jobs at the end of it."""

    def __init__(self, folder: Path, port: int, cpus: int = 8):
        self.folder, self.environment = folder, os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        folder.mkdir(parents=True)
        folder.chmod(0o755)  # munged requires this for its socket
        (folder / "slurm.conf").write_text(
            _CONFIGURATION.format(folder=folder, port=port, node_port=port + 1, cpus=cpus)
        )
        # SLURM wants device files for its GPUs, but does not open them.
        devices = ("/dev/null", "/dev/zero")
        (folder / "gres.conf").write_text("".join(f"NodeName=localhost Name=gpu File={d}\n" for d in devices))
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)

    def __enter__(self) -> "Cluster":
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._start("munged", *(f"--{option}={self.folder}/munge.{ending}" for option, ending in files.items()))
        self._start("slurmctld")
        self._start("slurmd", "-N", "localhost")
        end = time.monotonic() + 60
        while "idle" not in self.run("sinfo", "--noheader", "--format=%t", check=False):
            assert time.monotonic() < end, (self.folder / "slurmctld.log").read_text()[-3000:]
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--user=root", "--signal=KILL", check=False)  # stop the daemons in any case
        for name in ("slurmd", "slurmctld", "munge"):
            with suppress(FileNotFoundError, ProcessLookupError, ValueError):
                process = int((self.folder / f"{name}.pid").read_text())
                os.kill(process, signal.SIGTERM)
                for _ in range(50):
                    os.kill(process, 0)
                    time.sleep(0.1)

    def _start(self, program: str, *arguments: str) -> None:
        path = which(program)
        assert path is not None
        subprocess.run([path, *arguments], env=self.environment, check=True, timeout=60)

    def run(self, *command: str, check: bool = True, **environment: str) -> str:
        """Run a SLURM command. Returns its output."""
        completed = subprocess.run(
            command, env=self.environment | environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert not check or completed.returncode == 0, f"{command}: {completed.stdout}{completed.stderr}"
        return completed.stdout

    def submit(self, *arguments: str, **environment: str) -> str:
        """Submit a job. Returns its id."""
        return self.run("sbatch", "--parsable", *arguments, **environment).strip()

    def state(self, job: str) -> str:
        """The job's state from `scontrol show job`: RUNNING, PENDING, COMPLETED, FAILED, CANCELLED, or GONE."""
        shown = self.run("scontrol", "show", "job", job, check=False)
        return next((word.partition("=")[2] for word in shown.split() if word.startswith("JobState=")), "GONE")

    def wait(self, job: str, seconds: float = 300) -> str:
        """Wait for the job to end. Returns its final state."""
        end = time.monotonic() + seconds
        while (state := self.state(job)) in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"):
            assert time.monotonic() < end, f"job {job} is {state} after {seconds} s"
            time.sleep(0.3)
        return state
