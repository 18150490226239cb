"""Machines that are none: an sshd each, in process and mount namespaces of its own, on an address
of the loopback.

What runs on one sees neither the processes of the other nor anybody else's, and has a home and a
/tmp of its own; one folder is mounted on all. `ray stop` on such a machine can therefore end
nothing but what was started on it, and closing a machine ends whatever still runs there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

SSHD, USERS = "/usr/sbin/sshd", Path("/etc/passwd")
SHARED = Path("/srv")  # where the machines mount the folder that they share
NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# What `pip install 'ray[default]'` brings: it serves jobs, and the shipped file installs it on
# every machine.
DEFAULT = (
    "aiohttp_cors",
    "colorful",
    "opencensus",
    "prometheus_client",
    "smart_open",
    "virtualenv",
)


def unable() -> str:
    """Why there can be no such machines here ("": there can)."""
    if not sys.platform.startswith("linux"):
        return "namespaces are Linux's"
    missing = [
        tool
        for tool in (SSHD, "ssh", "ssh-keygen", "rsync", "unshare", "flock")
        if not shutil.which(tool)
    ]
    if missing:
        return (
            f"not installed: {', '.join(missing)} (apt-get install openssh-server rsync util-linux)"
        )
    absent = [name for name in DEFAULT if importlib.util.find_spec(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (pip install -e '.[cluster]')"
    if any(
        Path(p).is_relative_to(hidden)
        for p in (sys.prefix, sys.base_prefix)
        for hidden in ("/tmp", SHARED)
    ):
        return f"this environment ({sys.prefix}) lies below /tmp or {SHARED}, where the machines mount something else"
    tried = subprocess.run(
        [*NAMESPACES, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    return "" if os.geteuid() == 0 and tried.returncode == 0 else "namespaces and mounts need root"


def execute(
    words: list[str], environment: Mapping[str, str], folder: Path, patience: float
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output and error are one text. It is ended, with its children,
    after `patience` s.

    The output goes through a file: a child that lives on holds no pipe open that one would wait
    for.
    """
    print(f"$ {' '.join(words)}", flush=True)
    log = Path(environment["TMPDIR"]) / f"{time.monotonic_ns()}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise AssertionError(
                f"{words} has not ended within {patience:g} s:\n{log.read_text()}"
            ) from None
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", log.read_text(errors="replace"))
    print(f"{said}(exit code {code})", flush=True)
    return subprocess.CompletedProcess(words, code, said)


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on, below those that Linux gives out
    by itself.
    """
    for first in range(20000 + os.getpid() % 90 * 100, 32000 - count, count):
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for port in range(first, first + count):
                held.enter_context(contextlib.closing(socket.create_server(("", port))))
            return first
    raise AssertionError(f"no {count} free ports in a row")


class Machine:
    """A machine that answers to `ssh root@address`. folder: its home and /tmp lie there."""

    def __init__(self, address: str, folder: Path, network: Network) -> None:
        self.address, self.folder = address, folder
        self.tmp = folder / "tmp"
        for made in (self.tmp, folder / "home"):
            made.mkdir(parents=True)
        (folder / "home" / ".bashrc").write_text(network.shell)
        config = folder / "sshd_config"
        config.write_text(network.sshd(address))
        mounts = [(network.shared, SHARED), (network.data, SHARED / "data")]
        mounts += [
            (network.users, USERS),
            (folder / "home", network.home),
            (self.tmp, Path("/tmp")),
        ]
        commands = ["set -e", *(f"mount --bind {inner} {outer}" for inner, outer in mounts)]
        commands += [
            "mount -t tmpfs none /run",
            "mkdir /run/sshd",
            f"exec {SSHD} -D -e -f {config}",
        ]
        with (folder / "sshd.log").open("wb") as log:
            words = [*NAMESPACES, "bash", "-c", "\n".join(commands)]
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def until_it_answers(self, port: int) -> None:
        """Wait for its sshd."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                socket.create_connection((self.address, port), timeout=1).close()
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
                break
        raise AssertionError(f"no sshd on {self.address}: {(self.folder / 'sshd.log').read_text()}")

    def of_ray(self) -> list[str]:
        """Command lines of Ray's processes on the machine."""
        words = ["nsenter", "-t", self._first(), "--pid", "--mount", "ps", "-ww", "-eo", "args="]
        found = subprocess.run(
            words, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        return [
            line
            for line in found
            if re.match(r"ray::|\S*(?:raylet|gcs_server)\b|.*/ray/(?:_private|dashboard)/", line)
        ]

    def _first(self) -> str:
        """The machine's process 1, as it is numbered here."""
        return (
            Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            .read_text()
            .split()[0]
        )

    def workers_of(self, actor: str) -> list[str]:
        """Log files of this machine's Ray workers in which an actor of that class lived: Ray marks
        them so.
        """
        logs = (self.tmp / "tune_mm_ray").glob("session_2*/logs/worker-*.out")
        return [
            log.name for log in logs if f":actor_name:{actor}\n" in log.read_text(errors="replace")
        ]

    def close(self) -> None:
        """End all that runs on the machine."""
        self.process.kill()  # the namespace's process 1 dies with it, and all others with that
        self.process.wait()


class Network:
    """What the machines have in common. root: a short path, as Unix sockets must have."""

    def __init__(self, root: Path, data: Path, port: int) -> None:
        self.root, self.data, self.port = root, data, port
        self.home, self.shared, self.bin = root / "home", root / "shared", root / "bin"
        for made in (self.home, self.shared / "data", self.bin):
            made.mkdir(parents=True)
        for key in ("id", "host_key"):
            subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", root / key], check=True)
        # ssh looks a user's home up, whatever HOME says.
        self.users = root / "passwd"
        self.users.write_text(
            re.sub(r"^root:.*", f"root:x:0:0::{self.home}:/bin/bash", USERS.read_text(), flags=re.M)
        )
        trust = "StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR"
        (root / "ssh_config").write_text(
            f"Host 127.0.0.*\n  Port {port}\n  IdentityFile {root}/id\n  {trust}\n"
        )
        # Connections that Ray would share and keep for some seconds after the last command are made
        # one by one.
        options = f"-F {root}/ssh_config -o ControlMaster=no -o ControlPath=none"
        self.script("ssh", f'exec {shutil.which("ssh")} {options} "$@"')
        self.shell = f"export PATH={self.bin}:/usr/local/bin:/usr/bin:/bin PIP_NO_INDEX=true OMP_NUM_THREADS=1\n"

    def script(self, name: str, text: str) -> Path:
        """A command that all machines and the client have."""
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
        return path

    def sshd(self, address: str) -> str:
        """sshd_config of the machine at `address`."""
        return f"""Port {self.port}
ListenAddress {address}
HostKey {self.root}/host_key
PidFile none
AuthorizedKeysFile {self.root}/id.pub
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PermitRootLogin prohibit-password
"""


@contextlib.contextmanager
def machines(network: Network, addresses: tuple[str, ...]) -> Iterator[list[Machine]]:
    """Machines at these addresses, ended on leaving."""
    with contextlib.ExitStack() as stack:
        found: list[Machine] = []
        for number, address in enumerate(addresses):
            found.append(Machine(address, network.root / f"m{number}", network))
            stack.callback(found[-1].close)
            found[-1].until_it_answers(network.port)
        yield found
