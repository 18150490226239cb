"""Tables of segmentation, of frozen features and of the mixer: from a store of their own, and
without any run.

Metric k (from 0) of a final run with seed s (1, 2, 3) of a cell with base b is b + 0.01 s - 0.1 k:
its mean over the seeds is b + 0.02 - 0.1 k, and two cells differ by the difference of their bases
whatever the seed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reports import sample_runs
from tests.reports.tables.tabling import cell, choice, shipped
from tune_mm import report as command
from tune_mm.config import flatten, load_config, with_overrides
from tune_mm.reports.runs.store import Reader
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.reports.tables.tables import build, render_markdown
from tune_mm.track import Store, Writer
from tune_mm.track.tags import tags_for

FOOD = ("test/accuracy", "test/f1")
BRATS = ("test/dice_wt", "test/dice_tc", "test/dice_et", "test/dice")
OMBRIA = (
    "test/iou_flood",
    "test/miou",
    "test/dice",
    "test/iou_flood/s1_before",
    "test/iou_flood/s2_after",
)
NYUV2 = ("test/miou",)
MOSI = ("test/accuracy", "test/accuracy/text")
WEIGHTS = "model.encoder.weights=/models/r34.pth"
MIXER = "model.fusion=mixer"
# Protocol, metrics and cells: base value and what they override. The first is the tuned baseline.
SEARCHES: dict[str, tuple[str, tuple[str, ...], tuple[tuple[float, tuple[str, ...]], ...]]] = {
    "food": ("food101", FOOD, ((0.7, ()), (0.8, ("method=cggm",)))),
    "brats": ("brats", BRATS, ((0.6, ()), (0.75, ("method=cggm",)))),
    "ombria": (
        "ombria",
        OMBRIA,
        ((0.5, ()), (0.55, ("method=dgl",)), (0.52, ("method=mmpareto",))),
    ),
    "scratch": ("nyuv2", NYUV2, ((0.3, ()), (0.34, ("method=dgl",)))),
    "imagenet": ("nyuv2", NYUV2, ((0.4, (WEIGHTS,)), (0.42, ("method=dgl", WEIGHTS)))),
    "transformer": ("mosi", MOSI, ((0.9, ()), (0.95, ("method=dgl",)))),
    "mixer": ("mosi", MOSI, ((0.7, (MIXER,)), (0.72, ("method=dgl", MIXER)))),
}


def write(store: Store) -> None:
    """Write all searches, with their parents."""
    for name, (protocol, metrics, cells) in SEARCHES.items():
        own = tuple(sample_runs.Cell(base, overrides) for base, overrides in cells)
        search = sample_runs.Search(f"{name}-1", f"{name}-1-0000aaaa", name, protocol, (), own)
        with Writer(store, search.space, search=search.uid) as writer:
            parent = sample_runs.start_parent(writer, search)
            for i, (base, overrides) in enumerate(cells):
                config = load_config(protocol, overrides)
                for seed in sample_runs.SEEDS:
                    facts = {
                        "role": "tuned" if i else "baseline",
                        "search": search.name,
                        "source": f"search/{i}",
                    }
                    tags = {
                        **tags_for(
                            with_overrides(config, {"seed": seed}), stage="final", data_kind="real"
                        ),
                        **facts,
                    }
                    run = writer.start(
                        f"{i}-{seed}", flatten(config), tags, parent=parent, key=f"final/{i}/{seed}"
                    )
                    writer.log(
                        run, {m: base + 0.01 * seed - 0.1 * k for k, m in enumerate(metrics)}, 1
                    )
                    writer.finish(run, "completed")
            writer.finish(parent, "completed")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dense")


@pytest.fixture(scope="module")
def records(root: Path) -> list[StoredRun]:
    store = Store.open(f"sqlite:///{root}/mlruns/mlflow.db", root)
    write(store)
    return Reader.open(store.uri, root).records()


@pytest.mark.parametrize(
    ("name", "row", "base", "columns", "over"),
    [
        ("cggm_table_food101", "CGGM", 0.8, ["Accuracy", "F1"], 10.0),
        ("cggm_table_brats", "CGGM", 0.75, ["Dice WT", "Dice TC", "Dice ET", "Dice Mean"], 15.0),
        (
            "dense_ombria",
            "DGL",
            0.55,
            ["Flood IoU", "Mean IoU", "Flood Dice", "Flood IoU alone s1_before"],
            5.0,
        ),
        ("dense_ombria", "MMPareto", 0.52, ["Flood IoU", "Mean IoU", "Flood Dice"], 2.0),
        ("dgl_table5", "DGL", 0.34, ["From scratch"], 4.0),
        ("dgl_table5", "DGL", 0.42, ["ImageNet"], 2.0),
    ],
)
def test_cells_are_what_the_runs_of_their_settings_measured(
    records: list[StoredRun], name: str, row: str, base: float, columns: list[str], over: float
) -> None:
    table = build(shipped(name), records, choice())
    for k, column in enumerate(columns):
        found = cell(table, row, column)
        assert found.ours is not None and found.ours.n == 3
        assert found.ours.mean == pytest.approx(100 * (base + 0.02 - 0.1 * k))
        assert found.comparison is not None and found.comparison.difference == pytest.approx(over)


def test_a_cell_without_runs_names_the_search_of_its_methods(records: list[StoredRun]) -> None:
    food = cell(build(shipped("cggm_table_food101"), records, choice()), "QMF", "Accuracy")
    assert food.fill == ("python -m tune_mm.search --space methods_food101 --set data=food101",)
    flair = cell(build(shipped("cggm_table_brats"), records, choice()), "flair only", "Dice WT")
    loop = "for s in 1 2 3; do python -m tune_mm.train brats method=unimodal method.modality=flair seed=$s; done"
    assert flair.fill == (loop,)


def test_runs_with_another_fusion_are_no_runs_of_the_mixer(records: list[StoredRun]) -> None:
    table = build(shipped("dgl_table2"), [r for r in records if r.space != "mixer"], choice("mosi"))
    assert all(c.ours is None for line in table.rows for c in line.cells)
    assert cell(table, "DGL", "MOSI multi").published == 79.78
    own = "python -m tune_mm.search --space dgl_mosi_mixer --set data=mosi"
    all_methods = (
        "python -m tune_mm.search --space methods_mosi --set data=mosi --set model.fusion=mixer"
    )
    fills = {line.label: {c.fill for c in line.cells if c.applies} for line in table.rows}
    assert fills["DGL"] == fills["Multimodal baseline"] == {(own,)}
    assert fills["PMR"] == fills["D&R"] == {(all_methods,)}
    text = render_markdown(table)
    assert "runs with another fusion, such as the protocol's transformer, are not shown" in text
    assert own in text and all_methods in text

    mixed = build(shipped("dgl_table2"), records, choice("mosi"))
    for k, column in enumerate(("MOSI multi", "MOSI text")):
        ours = cell(mixed, "DGL", column).ours
        assert ours is not None and ours.mean == pytest.approx(100 * (0.72 + 0.02 - 0.1 * k))
    compared = cell(mixed, "DGL", "MOSI multi").comparison
    assert compared is not None and compared.difference == pytest.approx(2.0)


def test_below_another_group_a_row_has_the_commands_of_the_columns() -> None:
    found = cell(build(shipped("dgl_table2"), [], choice()), "DGL", "CREMA-D multi")
    assert found.fill == (
        "python -m tune_mm.search --space dgl_avdigits --set data=cremad --set model.fusion=mmtm",
    )


def test_initial_weights_of_any_file_have_a_column_of_their_own() -> None:
    table = build(shipped("dgl_table5"), [], choice())
    scratch, imagenet = ([line.cells[j] for line in table.rows] for j in (0, 1))
    search = "python -m tune_mm.search --space dgl_nyuv2 --set data=nyuv2"
    assert {c.fill for c in scratch} == {(search,)}
    assert {c.fill for c in imagenet} == {(f"{search} --set model.encoder.weights=r34_NBt1D.pth",)}
    assert [c.published for c in scratch] == [38.59, 41.67]


@pytest.mark.parametrize(
    "name", ["cggm_table_food101", "cggm_table_brats", "dense_ombria", "dgl_table5"]
)
def test_without_runs_a_table_is_the_papers_numbers_and_commands(name: str) -> None:
    table = build(shipped(name), [], choice())
    assert table.missing and not table.compared
    assert {c.why for line in table.rows for c in line.cells if c.applies} == {"no completed runs"}
    text = render_markdown(table)
    published = [v for row in shipped(name).rows for v in row.published.values()]
    assert all(f"missing [{value:.2f}]" in text for value in published)
    assert f"Data: {shipped(name).data} (no runs)" in text


def test_the_papers_pages_hold_the_new_tables(
    root: Path,
    records: list[StoredRun],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert command.main(["paper", "cggm", "--no-attach"]) == 0
    page = (root / "reports/paper_cggm.html").read_text(encoding="utf-8")
    assert all(
        f'id="{name}"' in page
        for name in ("cggm_table_food101", "cggm_table_brats", "dense_ombria")
    )
    assert "77.00" in page and "[76.94]" in page  # BraTS, WT: 100 (0.75 + 0.02); the paper's
    assert command.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("dgl_table5 ")]
    assert lines[at + 1].strip() == "runs: nyuv2 12"  # two columns of two rows, three seeds
