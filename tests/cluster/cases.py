"""Ways to break a shipped cluster file, one piece of text each, and the one check that has to
speak.
"""

from __future__ import annotations

from pathlib import Path

from tune_mm.cluster import checks
from tune_mm.cluster.formats.files import ClusterFile

CLUSTER = Path(__file__).resolve().parent.parent.parent / "cluster"
NAMES = ("aws.yaml", "gcp.yaml", "onprem.yaml", "kuberay.yaml", "slurm.sbatch")
CLOUDS = ("aws.yaml", "gcp.yaml")
MODE = "    - --env RAY_AUTH_MODE=token\n"
LAUNCHED = (*CLOUDS, "onprem.yaml")
STORAGE = {
    "aws.yaml": " --storage /shared/tune_mm",
    "gcp.yaml": " --storage gs://YOUR_BUCKET/tune_mm",
    "onprem.yaml": " --storage /shared/tune_mm",
    "kuberay.yaml": " --storage /shared/tune_mm",
    "slurm.sbatch": ' --storage "$SHARED/tune_mm"',
}

# file, what to replace, by what, the check that must speak, its severity, words of its message
Case = tuple[str, str, str, str, str, str]
KEYS: list[Case] = [
    (
        "aws.yaml",
        "idle_timeout_minutes: 10",
        "idle_timeout_minutes: 10\nmax_worker: 2",
        "unknown-key",
        "error",
        "no key 'max_worker'; nearest 'max_workers'",
    ),
    (
        "gcp.yaml",
        "pull_before_run:",
        "pull_before_runs:",
        "unknown-key",
        "error",
        "no key 'pull_before_runs' in docker; nearest 'pull_before_run'",
    ),
    (
        "aws.yaml",
        "min_workers: 2",
        "min_workers: 2\n    min_wokers: 2",
        "unknown-key",
        "error",
        "in available_node_types.gpu; nearest 'min_workers'",
    ),
    (
        "onprem.yaml",
        "provider:\n",
        "upscaling_speed: fast\nprovider:\n",
        "wrong-value",
        "error",
        "'fast'",
    ),
    (
        "onprem.yaml",
        "head_ip: 192",
        "head_pi: 192",
        "missing-key",
        "error",
        "head_ip is missing; nearest 'head_pi'",
    ),
    (
        "onprem.yaml",
        "auth:\n",
        "head_node_type: a\navailable_node_types: {a: {resources: {}, node_config: {}}}\nauth:\n",
        "wrong-value",
        "error",
        "does not go with provider local",
    ),
    (
        "aws.yaml",
        "head_node_type: head",
        "head_node_type: haed",
        "missing-key",
        "error",
        "nearest 'head'",
    ),
    (
        "kuberay.yaml",
        "apiVersion: ray.io/v1\n",
        "apiVersion: ray.io/v1alpha1\n",
        "wrong-value",
        "error",
        "ray.io/v1",
    ),
    (
        "kuberay.yaml",
        "  name: tune-mm\n",
        "  labels: {a: b}\n",
        "missing-key",
        "error",
        "metadata.name",
    ),
    (
        "slurm.sbatch",
        "set -euo pipefail",
        "set -euo pipefail\n#SBATCH --account=me",
        "late-directive",
        "error",
        "--account comes after a command",
    ),
]
SIZE: list[Case] = [
    *(
        (name, "max_workers: 2\nidle", "max_workers: 0\nidle", "no-workers", "error", "no workers")
        for name in CLOUDS
    ),
    *(
        (name, "max_workers: 2\nidle", "max_workers: 1\nidle", "max-workers", "error", "is 1")
        for name in CLOUDS
    ),
    *(
        (name, "    min_workers: 2", "    min_workers: 0", "late-workers", "warning", "no workers")
        for name in CLOUDS
    ),
    (
        "aws.yaml",
        "    max_workers: 2",
        "    max_workers: 1",
        "max-workers",
        "error",
        "at least 2 and at most 1",
    ),
    (
        "onprem.yaml",
        "provider:\n",
        "max_workers: 1\nprovider:\n",
        "max-workers",
        "warning",
        "asked for are 2",
    ),
    ("kuberay.yaml", "maxReplicas: 2", "maxReplicas: 0", "no-workers", "error", "no workers"),
    (
        "kuberay.yaml",
        "replicas: 2\n        minReplicas: 2",
        "replicas: 0\n        minReplicas: 0",
        "late-workers",
        "warning",
        "no workers are asked for",
    ),
    (
        "onprem.yaml",
        "RAY_enable_autoscaler_v2=0 ",
        "",
        "spare-worker",
        "error",
        "2 worker_ips give 1 workers",
    ),
    (
        "onprem.yaml",
        "RAY_enable_autoscaler_v2=0",
        "RAY_enable_autoscaler_v2=1",
        "spare-worker",
        "error",
        "1 workers",
    ),
    *(
        (
            name,
            " --autoscaling-config=~/ray_bootstrap_config.yaml",
            "",
            "autoscaling-config",
            "error",
            "without",
        )
        for name in LAUNCHED
    ),
    (
        "aws.yaml",
        "g4dn.xlarge\n",
        "m6i.xlarge\n",
        "gpu-missing",
        "error",
        "ask for 0.25 GPUs, and no worker has any",
    ),
    ("gcp.yaml", "{CPU: 4, GPU: 1}", "{CPU: 4}", "gpu-missing", "error", "no worker has any"),
    (
        "gcp.yaml",
        "acceleratorCount: 1",
        "acceleratorCount: 0",
        "gpu-missing",
        "error",
        "no worker has any",
    ),
    ("onprem.yaml", "IP:6399", "IP:6399 --num-gpus=0", "gpu-missing", "error", "no worker has any"),
    ("kuberay.yaml", ', nvidia.com/gpu: "1"', "", "gpu-missing", "error", "no worker has any"),
    (
        "slurm.sbatch",
        "#SBATCH --gpus-per-node=1\n",
        "",
        "gpu-missing",
        "error",
        "no worker has any",
    ),
    *(
        (name, "idle_timeout_minutes: 10\n", "", "idle-timeout", "warning", "missing")
        for name in CLOUDS
    ),
    (
        "aws.yaml",
        "idle_timeout_minutes: 10",
        "idle_timeout_minutes: 600",
        "idle-timeout",
        "warning",
        "is 600",
    ),
    (
        "kuberay.yaml",
        "shutdownAfterJobFinishes: true",
        "shutdownAfterJobFinishes: false",
        "idle-timeout",
        "error",
        "not true",
    ),
    ("slurm.sbatch", "#SBATCH --time=12:00:00\n", "", "idle-timeout", "warning", "no --time"),
    (
        "onprem.yaml",
        "worker_start_ray_commands:\n",
        "worker_start_ray_commands:\n  - ray stop\n",
        "ray-stop",
        "error",
        "on workers",
    ),
    (
        "onprem.yaml",
        "worker_start_ray_commands:\n  - ray start --address=$RAY_HEAD_IP:6399\n",
        "",
        "ray-stop",
        "error",
        "which the file does not replace",
    ),
    ("slurm.sbatch", "code=0\nwait", "ray stop\ncode=0\nwait", "ray-stop", "error", "on head"),
    *(
        (
            name,
            f"ray submit cluster/{name} tune_mm/search.py -- --space cggm_iemocap --require-real",
            f"ray submit --stop cluster/{name} tune_mm/search.py -- --space cggm_iemocap --require-real",
            "stop",
            "error",
            "--stop in a command",
        )
        for name in LAUNCHED
    ),
    (
        "aws.yaml",
        "#   ray down",
        "#   sudo shutdown -h now\n#   ray down",
        "stop",
        "error",
        "shutdown in a command",
    ),
    (
        "aws.yaml",
        "      InstanceType: m6i.large",
        "      InstanceType: m6i.large\n      InstanceMarketOptions: {MarketType: spot}",
        "spot-head",
        "error",
        "on spot",
    ),
    (
        "gcp.yaml",
        "machineType: e2-standard-2",
        "machineType: e2-standard-2\n      scheduling: [{preemptible: true}]",
        "spot-head",
        "error",
        "on spot",
    ),
    (
        "slurm.sbatch",
        "--ntasks-per-node=1",
        "--ntasks-per-node=4",
        "one-per-node",
        "error",
        "4 tasks per node",
    ),
]
ACCESS: list[Case] = [
    *((name, MODE, "", "auth-mode", "error", "not set on head") for name in CLOUDS),
    (
        "aws.yaml",
        "MODE=token\n    - --env RAY_AUTH_TOKEN_PATH",
        "MODE=tokn\n    - --env RAY_AUTH_TOKEN_PATH",
        "auth-mode",
        "error",
        "got 'tokn' on head; nearest 'token'",
    ),
    (
        "aws.yaml",
        MODE,
        MODE.replace("token", "disabled"),
        "auth-mode",
        "warning",
        "disabled on head",
    ),
    (
        "onprem.yaml",
        " RAY_AUTH_MODE=token RAY_USAGE",
        " RAY_USAGE",
        "auth-mode",
        "error",
        "not set on workers",
    ),
    (
        "kuberay.yaml",
        "    authOptions:\n      mode: token\n",
        "",
        "auth-mode",
        "error",
        "not set on workers 'gpu'",
    ),
    (
        "slurm.sbatch",
        "export RAY_AUTH_MODE",
        "RAY_AUTH_MODE",
        "auth-mode",
        "error",
        "not set on head",
    ),
    (
        "slurm.sbatch",
        "#SBATCH --mem=32G",
        "#SBATCH --mem=32G\n#SBATCH --export=RAY_USAGE_STATS_ENABLED",
        "auth-mode",
        "error",
        "not set on workers",
    ),
    *(
        (
            name,
            "  pull_before_run: true\n",
            "  pull_before_run: true\n  worker_run_options: ['--env RAY_AUTH_MODE=k8s']\n",
            "auth-differs",
            "error",
            "'token' on the head and 'k8s' on workers 'gpu'",
        )
        for name in CLOUDS
    ),
    (
        "onprem.yaml",
        "- ray start --address",
        "- RAY_AUTH_MODE=k8s ray start --address",
        "auth-differs",
        "error",
        "'token' on the head and 'k8s' on workers",
    ),
    (
        "kuberay.yaml",
        "              - name: ray-worker\n                image: YOUR_REGISTRY/tune_mm:0.1.0\n                env:\n",
        "              - name: ray-worker\n                image: YOUR_REGISTRY/tune_mm:0.1.0\n                env:\n"
        "                  - {name: RAY_AUTH_MODE, value: k8s}\n",
        "auth-differs",
        "error",
        "'k8s' on workers 'gpu'",
    ),
    (
        "slurm.sbatch",
        "    ray start --block",
        "    env RAY_AUTH_MODE=k8s ray start --block",
        "auth-differs",
        "error",
        "'token' on the head and 'k8s' on workers",
    ),
    *(
        (
            name,
            "    - --env RAY_AUTH_TOKEN_PATH=/home/ray/tune_mm_files/auth_token\n",
            "",
            "auth-token",
            "error",
            "gets no token",
        )
        for name in CLOUDS
    ),
    (
        "onprem.yaml",
        " 'RAY_AUTH_TOKEN_PATH=$HOME/tune_mm_files/auth_token'",
        "",
        "auth-token",
        "error",
        "gets no token",
    ),
    *(
        (name, "    - --env RAY_USAGE_STATS_ENABLED=0\n", "", "telemetry", "warning", "not set")
        for name in CLOUDS
    ),
    (
        "onprem.yaml",
        " RAY_USAGE_STATS_ENABLED=0\n",
        "\n",
        "telemetry",
        "warning",
        "not set on the head",
    ),
    (
        "kuberay.yaml",
        '                - {name: RAY_USAGE_STATS_ENABLED, value: "0"}\n                - {name: MLFLOW',
        "                - {name: MLFLOW",
        "telemetry",
        "warning",
        "not set on the head",
    ),
    (
        "slurm.sbatch",
        "RAY_USAGE_STATS_ENABLED=0",
        "RAY_USAGE_STATS_ENABLED=1",
        "telemetry",
        "warning",
        "not set",
    ),
    (
        "aws.yaml",
        "auth:\n",
        "# key: AKIAABCDEFGHIJKLMNOP\nauth:\n",
        "secret",
        "error",
        "an AWS access key",
    ),
    (
        "aws.yaml",
        MODE,
        MODE + "    - --env AWS_SECRET_ACCESS_KEY=abcdefghijklmnop0123\n",
        "secret",
        "error",
        "a secret is",
    ),
    (
        "gcp.yaml",
        "auth:\n",
        "auth:\n  # -----BEGIN RSA PRIVATE KEY-----\n",
        "secret",
        "error",
        "a private key",
    ),
    (
        "onprem.yaml",
        "http://192.168.0.10:5000",
        "http://me:hunter2@192.168.0.10:5000",
        "secret",
        "error",
        "a password",
    ),
    (
        "slurm.sbatch",
        "code=0\nwait",
        "export RAY_AUTH_TOKEN=0123456789abcdef\ncode=0\nwait",
        "secret",
        "error",
        "a secret",
    ),
    (
        "kuberay.yaml",
        "                - {name: MLFLOW",
        '                - {name: DB_PASSWORD, value: "hunter2"}\n                - {name: MLFLOW',
        "secret",
        "error",
        "a value for DB_PASSWORD",
    ),
    *(
        (
            name,
            "--dashboard-host=127.0.0.1",
            "--dashboard-host=0.0.0.0",
            "open-port",
            "error",
            "--dashboard-host",
        )
        for name in (*LAUNCHED, "slurm.sbatch")
    ),
    *(
        (
            name,
            "mlflow server --host YOUR_HEAD_IP",
            "mlflow server --host 0.0.0.0",
            "open-port",
            "error",
            "mlflow --host",
        )
        for name in CLOUDS
    ),
    (
        "kuberay.yaml",
        "    headGroupSpec:\n",
        "    headGroupSpec:\n      serviceType: LoadBalancer\n",
        "open-port",
        "error",
        "serviceType LoadBalancer",
    ),
]
PLACES: list[Case] = [
    *(
        (name, storage, "", "no-storage", "error", "the search gets no --storage")
        for name, storage in STORAGE.items()
    ),
    *(
        (
            name,
            storage,
            " --storage results",
            "relative-path",
            "error",
            "--storage 'results' is relative",
        )
        for name, storage in STORAGE.items()
    ),
    *(
        (
            name,
            storage,
            " --storage /tmp/results",
            "local-storage",
            "error",
            "/tmp/results is no shared file system",
        )
        for name, storage in STORAGE.items()
    ),
    (
        "slurm.sbatch",
        '--storage "$SHARED/tune_mm"',
        '--storage "$TMPDIR/tune_mm"',
        "local-storage",
        "error",
        "$TMPDIR",
    ),
    (
        "aws.yaml",
        "    - --volume /shared:/shared\n",
        "",
        "local-storage",
        "error",
        "/shared/tune_mm is no shared",
    ),
    (
        "onprem.yaml",
        '  - mountpoint -q /shared || { echo "/shared is not mounted on $(hostname)"; exit 1; }\n',
        "",
        "local-storage",
        "error",
        "on head",
    ),
    (
        "kuberay.yaml",
        "                volumeMounts:\n                  - {name: shared, mountPath: /shared}\n",
        "",
        "local-storage",
        "error",
        "on workers 'gpu'",
    ),
    *(
        (
            name,
            "tune_mm_files: ~/.tune_mm/cluster",
            "tune_mm_files: dist",
            "relative-path",
            "error",
            "the source of file_mounts 'dist' is relative",
        )
        for name in LAUNCHED
    ),
    (
        "aws.yaml",
        "  /home/ray/tune_mm_files:",
        "  tune_mm_files:",
        "relative-path",
        "error",
        "the target of file_mounts",
    ),
    (
        "onprem.yaml",
        "~/.ssh/id_ed25519",
        "id_ed25519",
        "relative-path",
        "error",
        "ssh_private_key 'id_ed25519'",
    ),
    (
        "gcp.yaml",
        "--data-root /data",
        "--data-root data",
        "relative-path",
        "error",
        "--data-root 'data' is relative",
    ),
]
PROJECT: list[Case] = [
    *(
        (
            name,
            "~/tune_mm_files/tune_mm-0.1.0-py3-none-any.whl",
            "torch",
            "no-project",
            "error",
            "nothing installs tune_mm",
        )
        for name in LAUNCHED
    ),
    (
        "kuberay.yaml",
        "YOUR_REGISTRY/tune_mm:0.1.0",
        "rayproject/ray:2.60.0-py311-gpu",
        "no-project",
        "error",
        "on head",
    ),
    (
        "slurm.sbatch",
        "dist/tune_mm-0.1.0-py3-none-any.whl",
        "torch",
        "no-project",
        "error",
        "nothing installs tune_mm",
    ),
    *(
        (
            name,
            "~/tune_mm_files/tune_mm-0.1.0-py3-none-any.whl",
            "tune_mm",
            "not-pinned",
            "warning",
            "no version is pinned",
        )
        for name in LAUNCHED
    ),
    (
        "aws.yaml",
        "~/tune_mm_files/tune_mm-0.1.0-py3-none-any.whl",
        "'tune_mm @ git+https://git.example/tune_mm@main'",
        "not-pinned",
        "warning",
        "git.example/tune_mm@main",
    ),
    (
        "gcp.yaml",
        "ray:2.60.0-py311-gpu",
        "ray:latest-gpu",
        "not-pinned",
        "warning",
        "rayproject/ray:latest-gpu",
    ),
    (
        "kuberay.yaml",
        "YOUR_REGISTRY/tune_mm:0.1.0",
        "YOUR_REGISTRY/tune_mm",
        "not-pinned",
        "warning",
        "/tune_mm",
    ),
    *(
        (
            name,
            "  container_name: tune_mm\n",
            "  container_name: tune_mm\n  worker_image: rayproject/ray:2.61.0-py311-gpu\n",
            "versions-differ",
            "error",
            "image is rayproject/ray:2.60.0-py311 on the head",
        )
        for name in CLOUDS
    ),
    (
        "aws.yaml",
        "  - pip install -q 'boto3>=1.35,<2'\n",
        "  - pip install -q 'boto3>=1.35,<2' torch==2.13.0\n"
        "worker_setup_commands:\n  - pip install -q torch==2.12.0\n",
        "versions-differ",
        "error",
        "torch is 2.13.0 on the head and 2.12.0 on workers 'gpu'",
    ),
    (
        "gcp.yaml",
        "  - pip install -q 'google-api-python-client>=2,<3'\n",
        "  - pip install -q 'google-api-python-client>=2,<3' 'ray[default]==2.60.0'\n"
        "worker_setup_commands:\n  - pip install -q ray==2.59.0\n",
        "versions-differ",
        "error",
        "Ray is 2.60.0 on the head and 2.59.0 on workers 'gpu'",
    ),
    (
        "kuberay.yaml",
        "      - name: ray-worker\n                image: YOUR_REGISTRY/tune_mm:0.1.0",
        "      - name: ray-worker\n                image: YOUR_REGISTRY/tune_mm:0.2.0",
        "versions-differ",
        "error",
        "image is YOUR_REGISTRY/tune_mm:0.1.0 on the head and YOUR_REGISTRY/tune_mm:0.2.0 on workers 'gpu'",
    ),
]

ALL = KEYS + SIZE + ACCESS + PLACES + PROJECT


def broken(folder: Path, name: str, old: str, new: str) -> ClusterFile:
    """A shipped file with `old` replaced throughout, read."""
    text = (CLUSTER / name).read_text()
    assert old in text
    path = folder / name
    path.write_text(text.replace(old, new))
    return checks.read(path)
