"""cluster/onprem.yaml for two machines on the loopback: what is replaced in it, and why."""

from __future__ import annotations

import re
from pathlib import Path

from tests.submit.machines import SHARED

REPOSITORY = Path(__file__).resolve().parents[2]
ADDRESSES = (
    "127.0.0.2",
    "127.0.0.3",
)  # for 127.0.0.1 Ray would take an outer address of this machine
WORKERS = 20  # ports of each node's workers
PORTS = (
    4 + 2 * WORKERS
)  # sshd, GCS, dashboard, Ray client, workers of the head, workers of the other


def replacements(root: Path, first: int) -> dict[str, str]:
    """What stands in the file -> what the test writes instead. root: the scratch folder; first: a
    free port.
    """
    gcs, dashboard, client = first, first + 1, first + 2
    ranges = [(first + 3 + i * WORKERS, first + 2 + (i + 1) * WORKERS) for i in range(2)]
    head, worker = (f"--min-worker-port={low} --max-worker-port={high}" for low, high in ranges)
    return {
        # What the reader of the file is told to fill in.
        "192.168.0.10": ADDRESSES[0],
        "[192.168.0.11, 192.168.0.12]": f"[{ADDRESSES[1]}]",
        "192.168.0.11": ADDRESSES[1],
        "/home/YOUR_USER": f"{root}/home",
        "YOUR_USER": "root",
        "~/.ssh/id_ed25519": f"{root}/id",
        "/shared": str(SHARED),
        # Both machines share this one's ports, and other people's Ray may hold Ray's own.
        "--port=6399": f"--port={gcs} --node-ip-address={ADDRESSES[0]} --ray-client-server-port={client} {head} "
        f"--dashboard-port={dashboard}",
        "$RAY_HEAD_IP:6399": f"$RAY_HEAD_IP:{gcs} --node-ip-address={ADDRESSES[1]} --num-cpus=1 {worker}",
        "127.0.0.1:8265": f"127.0.0.1:{dashboard}",
        # Two nodes with a CPU each: that of the head trains too.
        "--num-cpus=0": "--num-cpus=1",
        # There is no network from which to install: the environment begins with the packages of the
        # one the tests run in, all but the project.
        "python3.11 -m venv": f"{root}/bin/environment",
    }


def derive(root: Path, first: int) -> Path:
    """The file that the test uses. An entry above that does not occur in the shipped file is an
    error.
    """
    text, new = (REPOSITORY / "cluster" / "onprem.yaml").read_text(), replacements(root, first)
    absent = [old for old in new if old not in text]
    assert not absent, f"cluster/onprem.yaml no longer has {absent}"
    path = root / "onprem.yaml"
    path.write_text(re.sub("|".join(map(re.escape, new)), lambda match: new[match[0]], text))
    return path
