"""`python -m tune_mm.train`: one run from the command line to MLflow."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run as MlflowRun

from tune_mm import train
from tune_mm.cli import run_cli
from tune_mm.config import flatten, load_config
from tune_mm.core import checkpoint
from tune_mm.core.run import Run
from tune_mm.data import base as data
from tune_mm.errors import UserError
from tune_mm.track import Store

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = [
    "mosi",
    "train.device=cpu",
    "train.epochs=2",
    "model.encoder.width=10",
    "model.encoder.heads=2",
    "model.encoder.layers=1",
    "model.fusion.heads=2",
    "model.fusion.layers=1",
    "train.probe_size=8",
]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the synthetic data of these tests go."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow database, built once."""
    root = tmp_path_factory.mktemp("store")
    Store.open(f"sqlite:///{root}/mlflow.db", root)
    return root / "mlflow.db"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, cache: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a store, and no data anywhere."""
    (tmp_path / "mlruns").mkdir()
    shutil.copyfile(database, tmp_path / "mlruns" / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNE_MM_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("TUNE_MM_DATA", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def runs(place: Path, experiment: str = "mosi") -> list[MlflowRun]:
    store = Store.open(None, place)
    return list(
        store.client().search_runs(
            [store.experiment(experiment)], order_by=["attributes.start_time ASC"]
        )
    )


def steps(place: Path, run: MlflowRun, metric: str) -> list[int]:
    return [
        m.step for m in Store.open(None, place).client().get_metric_history(run.info.run_id, metric)
    ]


def artifacts(place: Path, run: MlflowRun) -> Path:
    return place / "mlruns" / "artifacts" / "mosi" / run.info.run_id / "artifacts"


def test_a_run_from_command_line_to_mlflow(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        *SMALL,
        "method=dgl",
        "--name",
        "mine",
        "method.alpha=4",
        "seed=3",
    ]  # options among overrides
    assert train.main(arguments) == 0
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if "SYNTHETIC" in line]) == 1
    assert [line[:9] for line in out.splitlines() if line.startswith("epoch")] == [
        "epoch 1/2",
        "epoch 2/2",
    ]
    assert "test/accuracy" in out
    assert "…" not in out
    (run,) = runs(place)
    config = load_config("mosi", [*SMALL[1:], "method=dgl", "method.alpha=4", "seed=3"])
    assert run.info.run_name == "mine"
    assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "completed")
    expected = {
        "method": "dgl",
        "dataset": "mosi",
        "fusion": "transformer",
        "data_kind": "synthetic",
        "seed": "3",
    }
    assert {**expected, "stage": "train"}.items() <= run.data.tags.items()
    assert {"git_commit", "version.torch", "version.tune_mm"} <= set(run.data.tags)
    assert "mlflow.parentRunId" not in run.data.tags
    assert run.data.params == {k: str(v) for k, v in flatten(config).items()}
    assert steps(place, run, "val/accuracy/text") == steps(place, run, "train/loss") == [1, 2]
    assert {"test/accuracy", "best/val/accuracy", "lr", "time/epoch"} <= set(run.data.metrics)
    assert any(name.startswith("grad/") for name in run.data.metrics)
    folder = artifacts(place, run)
    assert load_config(folder / "config.yaml") == config
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test"]["test/accuracy"] == run.data.metrics["test/accuracy"]
    assert (
        summary["best_metrics"]["val/accuracy"]
        == summary["best_value"]
        == run.data.metrics["best/val/accuracy"]
    )
    assert (summary["objective"], summary["status"], summary["epochs"]) == (
        "val/accuracy",
        "completed",
        2,
    )


def test_the_best_checkpoint_gives_the_test_metrics_again(place: Path) -> None:
    assert train.main(SMALL) == 0
    (run,) = runs(place)
    config = load_config(artifacts(place, run) / "config.yaml")
    dataset = data.load(config.data, data.resolve(config.data))
    fresh = Run(config, dataset)
    fresh.model.load_state_dict(checkpoint.load(artifacts(place, run) / "best.pt"))
    found = fresh.evaluate("test")
    # not bit-equal: how tensors lie in memory changes the last bit
    assert found == pytest.approx(
        {k: v for k, v in run.data.metrics.items() if k.startswith("test/")}, rel=1e-5
    )


def test_real_data_leave_no_word_about_synthetic_ones(
    place: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (data_root / "utd_mhad").is_dir():
        pytest.skip(f"no utd_mhad in {data_root}")
    rest = [
        "utd_mhad",
        "train.epochs=1",
        "train.device=cpu",
        "--require-real",
        "--data-root",
        str(data_root),
    ]
    assert train.main(rest) == 0
    assert "SYNTHETIC" not in capsys.readouterr().out
    (run,) = runs(place, "utd_mhad")
    assert run.data.tags["data_kind"] == "real"
    assert run.data.tags["dataset"] == "utd_mhad"


def test_without_tracking_nothing_is_written_and_mlflow_is_not_even_loaded(place: Path) -> None:
    shutil.rmtree(place / "mlruns")
    code = "import sys; from tune_mm import train; assert train.main() == 0; assert 'mlflow' not in sys.modules"
    command = [sys.executable, "-c", code, *SMALL, "train.epochs=1", "--no-tracking"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert list(place.iterdir()) == []


def test_a_tracking_uri_is_used(place: Path) -> None:
    assert (
        train.main([*SMALL, "train.epochs=1", "--tracking-uri", f"sqlite:///{place}/other.db"]) == 0
    )
    assert (place / "other.db").exists()
    assert runs(place) == []


# ---- resume


def test_a_resumed_run_is_the_same_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train.main([*SMALL, "train.epochs=3"]) == 0
    file = place / "state.pt"
    resumable = [*SMALL, "train.epochs=3", "--resume", str(file)]
    inner, calls = Run.epoch, 0

    def interrupted(self: Run) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return inner(self)

    monkeypatch.setattr(Run, "epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(resumable)
    _, stopped = runs(place)
    assert (stopped.info.status, stopped.data.tags["status"]) == ("KILLED", "stopped")
    assert stopped.data.tags["reason"] == "interrupted after epoch 2"
    monkeypatch.setattr(Run, "epoch", inner)
    assert train.main(resumable) == 0
    whole, resumed = runs(place)
    assert resumed.info.run_id == stopped.info.run_id
    assert resumed.info.status == "FINISHED"
    assert "reason" not in resumed.data.tags
    assert steps(place, resumed, "val/loss") == [1, 2, 3]
    same = {k for k in whole.data.metrics if not k.endswith("time/epoch")}
    expected = {k: whole.data.metrics[k] for k in same}
    assert {k: resumed.data.metrics[k] for k in same} == pytest.approx(
        expected, rel=1e-5, nan_ok=True
    )


def test_a_finished_state_trains_no_more(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert train.main([*SMALL, "--resume", "state.pt"]) == 0
    assert len(runs(place)) == 1
    out = capsys.readouterr().out
    assert out.count("epoch 2/2") == 1
    assert out.count("test/accuracy") == 2


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_file_that_is_no_state_is_a_users_mistake(place: Path, content: bytes | None) -> None:
    file = place / "state.pt"
    if content is None:
        checkpoint.save({"weights": 1}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"--resume .*state\.pt: no state of a training run"):
        train.main([*SMALL, "--resume", str(file)])


def test_a_state_of_another_configuration_is_refused(place: Path) -> None:
    arguments = [*SMALL, "--no-tracking", "--resume", "state.pt", "train.epochs=1"]
    assert train.main(arguments) == 0
    with pytest.raises(UserError, match=r"another configuration \('seed: 0', now 'seed: 5'\)"):
        train.main([*arguments, "seed=5"])


# ---- how it ends


def test_a_run_that_diverges_is_failed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diverging = ["optim.name=sgd", "optim.lr=1e30", "optim.clip=null", "schedule.name=constant"]
    assert train.main([*SMALL, *diverging, "--resume", "state.pt"]) == 1
    (run,) = runs(place)
    assert (run.info.status, run.data.tags["status"]) == ("FAILED", "failed")
    assert "not finite" in run.data.tags["reason"]
    assert "not finite" in capsys.readouterr().out
    assert not any(name.startswith("test/") for name in run.data.metrics)
    json.loads((artifacts(place, run) / "summary.json").read_text(), parse_constant=pytest.fail)


def test_a_bug_is_a_failed_run_and_keeps_its_traceback(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Run) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Run, "epoch", broken)
    with pytest.raises(ZeroDivisionError):
        train.main(SMALL)
    (run,) = runs(place)
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "ZeroDivisionError: a bug")


def test_interrupted_by_a_signal(place: Path) -> None:
    command = [sys.executable, "-m", "tune_mm.train", *SMALL, "train.epochs=100000"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while not process.stdout.readline().startswith("epoch"):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.stderr.read() == "interrupted\n"
    assert process.returncode == 130
    (run,) = runs(place)
    assert (run.info.status, run.data.tags["status"]) == ("KILLED", "stopped")
    assert run.data.metrics["val/loss"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mosi", "method=dgll"], "nearest 'dgl'"),
        (["mosi", "optim.lrr=1"], "lrr"),
        (["mossi"], "mossi"),
        (["mosi", "--require-real"], "real data are required"),
        (["mosi", "--data-root", "/nowhere"], "/nowhere"),
        (["mosi", "method={name: unimodal, modality: smell}"], "method.modality"),
        (
            ["mosi", "train.monitor=val/mae"],
            "train.monitor: no metric 'val/mae' in classification; available: val/loss, val/accuracy",
        ),
        (["mosi", "train.monitor=val/accuracy/smell"], "no metric 'val/accuracy/smell'"),
        (["mosi", "train.monitor=val/nonsense"], "train.monitor: no metric"),
        (["mosi", "train.epochs=1", "--tracking-uri", "mango://x"], "cannot be used"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(lambda: train.main(arguments)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_gpu_that_is_not_there_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match=r"train.device: 'cuda:99' cannot be used"):
        train.main([*SMALL, "train.device=cuda:99", "--no-tracking"])


def test_a_store_that_cannot_be_used_is_said_before_training(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="cannot be used"):
        train.main([*SMALL, "--tracking-uri", f"sqlite:///{place}/mlruns/mlflow.db/x.db"])
    assert "epoch" not in capsys.readouterr().out


def test_an_unwritable_state_file_is_a_users_mistake(place: Path) -> None:
    (place / "file").write_text("")
    with pytest.raises(UserError, match=r"--resume file/state.pt: cannot be written"):
        train.main([*SMALL, "--no-tracking", "--resume", "file/state.pt"])


CLIPS = [
    "avdigits",
    "train.device=cpu",
    "train.epochs=1",
    "model.encoder.channels=[4, 6]",
    "train.probe_size=8",
    "data.folder=mine",
    "data.audio_folder=audio",
    "data.frames_folder=frames",
]


def test_damaged_and_missing_clips_are_told_and_left_out_only_when_asked(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clip without a wav is always left out; one whose wav is garbage stops the program, unless
    --skip-bad.
    """
    config = load_config(CLIPS[0], CLIPS[5:])
    plugin = data.plugin_of(config.data)
    folder = data.make(
        config.data, place, plugin.options(config.data).changed(train=24, val=12, test=12)
    )
    wavs = sorted((folder / "audio").iterdir())
    wavs[0].unlink()
    wavs[1].write_bytes(b"RIFF, but no more than that")
    command = [*CLIPS, "--data-root", str(place)]
    assert run_cli(lambda: train.main(command)) == 2
    message = capsys.readouterr().err
    assert f"1 of 47 clips cannot be read: {wavs[1]}" in message
    assert "data.skip_bad=true (--skip-bad) leaves them out" in message
    assert "Traceback" not in message
    assert run_cli(lambda: train.main([*command, "--skip-bad"])) == 0
    shown = capsys.readouterr().out
    assert "1 of 48 clips left out: 1 without audio" in shown
    assert "1 of 47 clips cannot be read and are left out (skip_bad)" in shown
    (run,) = runs(place, "avdigits")
    store = Store.open(None, place)
    about = json.loads(
        Path(
            store.client().download_artifacts(run.info.run_id, "data.json", str(place))
        ).read_text()
    )
    assert about["dropped"][wavs[0].stem] == "without audio"
    assert str(wavs[1]) in about["dropped"][wavs[1].stem]
    assert sum(about["samples"].values()) == 46
    assert about["task"]["class_names"] == list("012345")
