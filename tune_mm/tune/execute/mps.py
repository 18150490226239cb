"""NVIDIA's Multi-Process Service on request: processes run kernels on a GPU side by side.

Without it they take turns. One control daemon per node and user, in a folder of its own, so that
one which others have started is left alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tune_mm.errors import UserError
from tune_mm.tune.execute import nodes
from tune_mm.tune.execute.nodes import Node

PROGRAM = "nvidia-cuda-mps-control"
PATIENCE = 30.0  # seconds


def folder() -> str:
    """Where the daemon and its clients meet: the same path on every node."""
    return str(Path(tempfile.gettempdir()) / f"tune_mm-mps-{os.getuid()}")


def environment(where: str) -> dict[str, str]:
    """What a process must have in its environment before it uses CUDA."""
    return {"CUDA_MPS_PIPE_DIRECTORY": where, "CUDA_MPS_LOG_DIRECTORY": where}


def start(where: str) -> list[Node]:
    """Start the service on every node with a GPU; the nodes on which it did not run already.

    Raises UserError, naming the node, where it cannot be started, and when there is no GPU.
    """
    there = [node for node in nodes.alive() if node.gpus > 0]
    if not there:
        raise UserError("--mps: Ray sees no GPU here")
    answers = nodes.ask(there, _start, where)
    return [node for node, started in answers.items() if started]


def stop(there: list[Node], where: str) -> None:
    """End the service on these nodes, as far as they are still there."""
    alive = {node.id for node in nodes.alive()}
    still_there = [node for node in there if node.id in alive]
    nodes.ask(still_there, _stop, where)


def _start(where: str) -> bool:
    """On a node. Whether it was started now."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise UserError(f"--mps: {PROGRAM} is not there; it comes with NVIDIA's driver")
    Path(where).mkdir(mode=0o700, exist_ok=True)
    if _control(program, where, "get_server_list") is None:
        return False
    given = {**os.environ, **environment(where)}
    done = subprocess.run(
        [program, "-d"], env=given, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise UserError(f"--mps: {PROGRAM} does not start: {said}")
    return True


def _stop(where: str) -> None:
    program = shutil.which(PROGRAM)
    if program is not None:
        _control(program, where, "quit")


def _control(program: str, where: str, command: str) -> str | None:
    """Ask a running daemon; why it does not answer, if so."""
    done = subprocess.run(
        [program],
        input=f"{command}\n",
        env={**os.environ, **environment(where)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode == 0:
        return None
    return done.stderr.strip() or "no answer"
