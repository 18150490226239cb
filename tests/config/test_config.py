"""Configurations: every shipped file loads, every mistake is named with its place, and nothing else
is raised.
"""

import pickle
import string
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tune_mm.cli import run_cli
from tune_mm.config import (
    ConfigError,
    check_field,
    dump_config,
    field_types,
    file_names,
    flatten,
    load_config,
    parse_config,
    read_yaml,
    to_dict,
    with_overrides,
)

REPOSITORY = Path(__file__).resolve().parents[2]
BASE = (REPOSITORY / "configs" / "iemocap.yaml").read_text(encoding="utf-8")
NAMES = ("iemocap", "mosi", "utd_mhad")


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes x.yaml in an empty working directory and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes) -> str:
        Path("x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return "x.yaml"

    return write


def problems(path, overrides=()) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def line(text: str, start: str) -> int:
    return next(i for i, row in enumerate(text.splitlines(), 1) if row.strip().startswith(start))


# The files that are shipped


@pytest.mark.parametrize("name", NAMES)
def test_shipped_configs_are_a_fair_ground(name):
    config = load_config(name)
    assert (config.name, config.method.name) == (name, "joint")
    text = (REPOSITORY / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    assert (
        text.startswith("# ")
        and f"python -m tune_mm.train {name} method=" in text
        and "--set " in text
    )
    assert (config.optim.name, config.optim.lr, config.optim.clip) == ("adam", 1e-3, 0.8)


def test_iemocap_is_the_published_protocol():
    c = load_config("iemocap")
    assert (c.train.epochs, c.train.batch_size, c.schedule.name, c.schedule.patience) == (
        30,
        64,
        "plateau",
        10,
    )
    e, f = c.model.encoder, c.model.fusion
    assert (e.width, e.heads, e.layers, f.layers) == (40, 5, 4, 2)
    drops = [
        f.dropout_attention,
        f.dropout_relu,
        f.dropout_embed,
        f.dropout_residual,
        f.dropout_output,
    ]
    assert drops == [0.15, 0.15, 0.2, 0.15, 0.2]


@pytest.mark.parametrize("name", NAMES)
def test_dump_loads_back_equal(name, written):
    config = load_config(name, ["optim.eps=1e-9", "schedule.milestones=[0.5, 20]", "name='1e-3'"])
    assert config.name == "1e-3"
    assert load_config(written(dump_config(config))) == config
    assert parse_config(to_dict(config)) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_section_cannot_be_changed():
    config = load_config("iemocap")
    with pytest.raises(ValueError, match="frozen"):
        config.optim.lr = 1.0  # type: ignore[misc]


# Overrides


def test_overrides_set_what_they_name():
    config = load_config(
        "iemocap",
        ["optim.lr=3e-4", "train.epochs=5", "optim.clip=null", "model.encoder.padding_mask=false"],
    )
    assert (config.optim.lr, config.train.epochs, config.optim.clip) == (3e-4, 5, None)
    assert config.model.encoder.padding_mask is False


def test_zero_false_and_null_are_values():
    settings = [
        "optim.weight_decay=0",
        "method=cggm",
        "method.lam=0.0",
        "method.magnitude=false",
        "optim.clip=null",
        "seed=0",
    ]
    config = load_config("mosi", settings)
    assert (config.optim.weight_decay, config.method.lam, config.method.magnitude) == (
        0.0,
        0.0,
        False,
    )
    assert isinstance(config.optim.weight_decay, float)


def test_the_name_of_a_plugin_drops_the_fields_of_the_one_before():
    config = load_config("iemocap", ["model.fusion=concat"])
    assert config.model.fusion.name == "concat"
    assert "model.fusion.layers" not in field_types(config)


def test_naming_the_plugin_that_is_there_keeps_its_fields():
    changed = load_config("iemocap", ["model.fusion.layers=3"])
    assert with_overrides(changed, {"model.fusion": "transformer"}) == changed


@pytest.mark.parametrize("switch", ["method=dgl", "method.name=dgl", "method={name: dgl}"])
def test_a_plugin_and_its_fields_in_any_order(switch):
    wanted = load_config("iemocap", [switch, "method.alpha=4"])
    assert (wanted.method.name, wanted.method.alpha) == ("dgl", 4.0)
    assert load_config("iemocap", ["method.alpha=4", switch]) == wanted


def test_overrides_read_scalars_as_files_do():
    config = load_config("iemocap", ["name=on", "optim.lr=1e-3"])
    assert (config.name, config.optim.lr) == ("on", 0.001)
    assert problems("iemocap", ["name=12"]) == ("name: must be text, got 12 (override 'name=12')",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "optim.lrr: no such key; nearest 'optim.lr'"),
        ("optm.lr=1", "optm.lr: no such key; nearest 'optim.lr'"),
        ("lr=1", "lr: no such key; nearest 'optim.lr'"),
        ("seed.x=1", "seed.x: no such key; 'seed' is no section"),
        ("method.alpha=1", "method.alpha: no such key; allowed in 'joint': name"),
        ("train.epochs=ten", "train.epochs: must be an integer, got 'ten'"),
        ("train.epochs=5.0", "train.epochs: must be an integer, got 5.0"),
        ("train.epochs=true", "train.epochs: must be an integer, got true"),
        ("train.epochs=0", "train.epochs: must be >= 1, got 0"),
        ("optim.lr=true", "optim.lr: must be a number, got true"),
        ("optim.lr='1'", "optim.lr: must be a number, got '1'"),
        ("optim.lr=.nan", "optim.lr: must be finite, got NaN"),
        ("optim.lr=.inf", "optim.lr: must be finite, got Infinity"),
        ("optim.lr=1e999", "optim.lr: must be finite, got Infinity"),
        ("optim.lr=", "optim.lr: must be a number, got null"),
        ("optim.clip=big", "optim.clip: must be a number or null, got 'big'"),
        ("optim.beta1=1", "optim.beta1: must be < 1, got 1"),
        (
            "optim.name=adm",
            "optim.name: must be one of sgd, adam, adamw, got 'adm'; nearest 'adam'",
        ),
        ("train.gradient_statistics=1", "train.gradient_statistics: must be true or false, got 1"),
        ("train.device=gpu", "train.device: must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        (
            "train.monitor=test/accuracy",
            "train.monitor: must be auto or a metric of the validation split, 'val/...', "
            "got 'test/accuracy'",
        ),
        ("schedule.milestones=3", "schedule.milestones: must be a list, got 3"),
        (
            "schedule.milestones=[5, 1.5]",
            "schedule.milestones.1: must be epochs (an integer >= 0) or a fraction of all "
            "epochs (a number in [0, 1)), got 1.5",
        ),
        ("schedule.warmup=true", "schedule.warmup: must be an integer or a number, got true"),
        ("schedule.name=step", "schedule: name 'step' needs milestones, for example [0.7]"),
        ("optim=3", "optim: must be a mapping (key: value lines), got 3"),
        (
            "method=3",
            "method: must be the name of one of methods, or a mapping with it under 'name', got 3",
        ),
        ("method=unimodal", "method.modality: missing, and it has no default"),
        ("model.encoder.heads=0", "model.encoder.heads: must be >= 1, got 0"),
        ("name=''", "name: must not be empty, got ''"),
        (
            "name=[1",
            "name: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'; "
            "quote the value to have it as text",
        ),
        (
            "name=*x",
            "name: not valid YAML: alias '*x' is not allowed; quote the value to have it as text",
        ),
    ],
)
def test_a_wrong_override_is_named(override, message):
    assert problems("iemocap", [override]) == (f"{message} (override {override!r})",)


@pytest.mark.parametrize("text", ["epochs", "=3", ".a=1", "a..b=1", ""])
def test_an_override_without_a_key_or_a_value(text):
    assert problems("iemocap", [text]) == (f"override {text!r}: must be key=value",)


def test_an_unknown_plugin_is_named_with_its_place(written):
    (told,) = problems("iemocap", ["method=dgll"])
    assert told.startswith("methods: no 'dgll'; nearest 'dgl'; available: ") and told.endswith(
        "(override 'method=dgll')"
    )
    assert all(name in told for name in ("cggm", "dgl", "joint", "unimodal"))
    text = BASE.replace("method: joint", "method: {name: cgmm}")
    (told,) = problems(written(text))
    assert told.startswith("methods: no 'cgmm'; nearest 'cggm'; ")
    assert told.endswith(f"(x.yaml line {line(text, 'method:')})")


# Files


def test_all_mistakes_of_a_file_and_its_overrides_at_once(written):
    text = (
        BASE.replace("lr: 1e-3", "lr: -1")
        .replace("epochs: 30", "epoch: 30")
        .replace("clip: 0.8", "clip: [0.8]")
    )
    told = problems(written(text), ["optim.lrr=1", "seed", "train.batch_size=many"])
    assert told == (
        "override 'seed': must be key=value",
        f"optim.lr: must be > 0, got -1 (x.yaml line {line(text, 'lr:')})",
        f"optim.clip: must be a number or null, got [0.8] (x.yaml line {line(text, 'clip:')})",
        "optim.lrr: no such key; nearest 'optim.lr' (override 'optim.lrr=1')",
        f"train.epochs: missing, and it has no default (x.yaml line {line(text, 'train:')})",
        "train.batch_size: must be an integer, got 'many' (override 'train.batch_size=many')",
        f"train.epoch: no such key; nearest 'train.epochs' (x.yaml line {line(text, 'epoch:')})",
    )


def test_an_override_mends_a_wrong_value_of_the_file(written):
    assert (
        load_config(written(BASE.replace("lr: 1e-3", "lr: -1")), ["optim.lr=0.1"]).optim.lr == 0.1
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.yaml: must be a mapping (key: value lines), is empty"),
        ("# only a comment\n", "x.yaml: must be a mapping (key: value lines), is empty"),
        ("- a\n- b\n", "x.yaml: must be a mapping (key: value lines), got list"),
        ("just text", "x.yaml: must be a mapping (key: value lines), got str"),
        (
            "a: 1\nb: [1,\n",
            "x.yaml: not valid YAML: while parsing a flow node, expected the node content, but found "
            "'<stream end>' (line 3)",
        ),
        ("a: b: c\n", "x.yaml: not valid YAML: mapping values are not allowed here (line 1)"),
        (
            "a: 1\n--- \nb: 2\n",
            "x.yaml: not valid YAML: expected a single document in the stream, but found another "
            "document (line 2)",
        ),
        (
            "a: \t\x07",
            "x.yaml: not valid YAML: unacceptable character #x0007: special characters are not allowed",
        ),
        (b"a: caf\xe9\n", "x.yaml: must be UTF-8 text, got byte 0xe9 (line 1)"),
        ("name: a\nname: b\n", "name: given twice; first on line 1 (x.yaml line 2)"),
        ("optim:\n  lr: 1\n  lr: 2\n", "optim.lr: given twice; first on line 2 (x.yaml line 3)"),
        ("a: &x 1\nb: *x\n", "x.yaml: not valid YAML: alias '*x' is not allowed (line 2)"),
        (
            "a: !!python/object/apply:os.system [id]\n",
            "a: tag '!!python/object/apply:os.system' is not allowed (x.yaml line 1)",
        ),
        ("a: !!set {b}\n", "a: tag '!!set' is not allowed (x.yaml line 1)"),
        ("a: !!int ten\n", "a: cannot be read as int, got 'ten' (x.yaml line 1)"),
        ("a: !!binary aGk=\n", "a: tag '!!binary' is not allowed (x.yaml line 1)"),
        ("a: " + "9" * 5000, "a: cannot be read as int, got '" + "9" * 40 + "' (x.yaml line 1)"),
        ("1: a\n", "a key must be text; quote it (x.yaml line 1)"),
        ("a: {[b]: c}\n", "a: a key must be text; quote it (x.yaml line 1)"),
        ("a: " + "[" * 60 + "]" * 60, "x.yaml: not valid YAML: nested more than 50 deep (line 1)"),
        ("#" * 1_000_001, "x.yaml: must be at most 1000000 bytes"),
    ],
    ids=lambda v: repr(v)[:30],
)
def test_a_file_that_cannot_be_read_is_one_clear_message(text, message, written):
    assert problems(written(text)) == (message,)


def test_all_repeated_keys_are_named(written):
    assert len(problems(written("a: 1\na: 2\nb: {c: 1, c: 2}\n"))) == 2


def test_files_that_are_not_there(written, tmp_path):
    assert problems("iemocapp")[0].startswith(
        "configs: no such name 'iemocapp'; nearest 'iemocap'; available: avdigits, "
    )
    assert problems("configs/mosy.yaml")[0].startswith(
        "configs: no such file 'configs/mosy.yaml'; nearest 'mosi'; "
    )
    assert problems("x" * 5000)[0].startswith("configs: no such name")
    assert problems("a\0b")[0].startswith("configs: no such name")
    assert problems(".")[0].startswith("configs: no such name")
    assert problems("")[0].startswith("configs: no such name")
    (tmp_path / "folder.yaml").mkdir()
    assert problems("folder.yaml")[0].startswith("configs: no such file")
    with pytest.raises(ConfigError, match=r"folder\.yaml: not a file"):
        read_yaml("folder.yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        read_yaml("none.yaml")


def test_a_name_a_path_and_the_shipped_copy(written, monkeypatch):
    assert load_config("configs/mosi.yaml") == load_config(
        "mosi"
    )  # neither ./mosi.yaml nor ./configs exists here
    Path("configs").mkdir()
    Path("configs/mine.yaml").write_text(BASE.replace("name: iemocap\nseed", "name: mine\nseed"))
    assert (
        load_config("mine").name
        == load_config("configs/mine.yaml").name
        == load_config(Path("configs/mine.yaml").resolve()).name
    )
    assert {"mine", *NAMES} <= set(file_names("configs"))


def test_yaml_scalars_follow_version_1_2(written):
    text = "a: on, b: no, c: 1e-3, d: 0o17, e: 012, f: 1_000, g: ~, h:, i: 2001-01-01, "
    text += "j: .5, k: 1:30, l: '1', m: !!str 1"
    data = read_yaml(written(text.replace(", ", "\n") + "\nn: True")).data
    assert data == {
        "a": "on",
        "b": "no",
        "c": 0.001,
        "d": 15,
        "e": 12,
        "f": "1_000",
        "g": None,
        "h": None,
        "i": "2001-01-01",
        "j": 0.5,
        "k": "1:30",
        "l": "1",
        "m": "1",
        "n": True,
    }


def test_lines_of_keys(written):
    document = read_yaml(written("a:\n  b:\n    - 1\n    - 2\nc: 3\n"))
    assert [document.line_of(k) for k in ("a", "a.b", "a.b.1", "c", "d")] == [1, 2, 4, 5, None]
    assert document.where("a.b.x.y") == "x.yaml line 2"
    assert document.where("d") == "x.yaml"


# Values in code


def test_replace_flatten_and_fields_speak_the_same_keys():
    config = load_config("iemocap", ["method=cggm", "schedule.milestones=[0.5, 20]"])
    flat = flatten(config)
    assert flat["schedule.milestones"] == "[0.5, 20]"
    assert flat["optim.clip"] == 0.8 and flat["method.clamp"] is None
    assert list(flat) == list(field_types(config))
    assert field_types(config)["method.rho"] is float
    plain = {k: v for k, v in flat.items() if k != "schedule.milestones"}
    assert with_overrides(config, plain) == config
    assert (
        with_overrides(load_config("iemocap"), {**plain, "schedule.milestones": (0.5, 20)})
        == config
    )


def test_replace_takes_sections_and_leaves_the_original_alone():
    config = load_config("iemocap")
    dgl = load_config("iemocap", ["method=dgl", "method.alpha=4"])
    assert with_overrides(config, {"method": dgl.method}) == dgl
    assert config == load_config("iemocap")
    with pytest.raises(ConfigError, match=r"^method\.alpha: must be >= 0, got -1$"):
        with_overrides(dgl, {"method.alpha": -1})


def test_check_field_says_why_a_value_is_refused():
    config = load_config("iemocap", ["method=cggm"])
    assert check_field(config, "method.rho", 1.2) is None
    assert check_field(config, "method.rho", -1) == "method.rho: must be >= 0, got -1"
    assert (
        check_field(config, "method.rhoo", 1.0) == "method.rhoo: no such key; nearest 'method.rho'"
    )
    assert check_field(config, "method", "dgl") is None


def test_parse_says_where():
    with pytest.raises(ConfigError) as caught:
        parse_config(
            {"name": "x", "data": "mosi", "optim.lr": 1, "method": "joint", "train": {}}, "space y"
        )
    assert caught.value.problems == (
        "model: missing, and it has no default (space y)",
        "train.epochs: missing, and it has no default (space y)",
        "train.batch_size: missing, and it has no default (space y)",
        "optim.lr: no such key; in a file, write 'lr' inside the section 'optim' (space y)",
    )


def test_an_error_survives_pickling():
    error = ConfigError(["a", "b"])
    assert pickle.loads(pickle.dumps(error)).problems == ("a", "b")


KEYS = [
    *field_types(load_config("iemocap", ["method=cggm"])),
    "method",
    "data",
    "model",
    "optim",
    "model.fusion",
    "schedule",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 10**6)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        [
            "cggm",
            "dgl",
            "joint",
            "concat",
            "transformer",
            "step",
            "adam",
            "auto",
            "0.1",
            "-1",
            "null",
        ]
    )
)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6), v, max_size=3)
)
TEXTS = st.tuples(
    st.sampled_from(KEYS) | st.text(string.ascii_lowercase + "._= {}[]*&!:", max_size=12),
    st.text(max_size=12),
).map("=".join)


@given(st.lists(TEXTS, max_size=3))
@example(["method.name={}", "method.rho=1"])
@example(["model=transformer", "model.fusion.layers=2"])
@example(["data.name.x=1"])
def test_any_override_loads_or_is_a_config_error(overrides):
    try:
        config = load_config("iemocap", overrides)
    except ConfigError as error:
        assert error.problems
        assert all(
            isinstance(p, str) and "pydantic" not in p and "Input" not in p for p in error.problems
        )
    else:
        assert with_overrides(config, {}) == config


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_any_value_is_taken_or_refused_and_what_is_taken_round_trips(tmp_path_factory, values):
    base = load_config("iemocap", ["method=cggm"])
    try:
        config = with_overrides(base, values)
    except ConfigError as error:
        assert error.problems
        return
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    assert parse_config(to_dict(config)) == config


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example("a: é\n".encode("utf-16"))
def test_any_file_is_read_or_is_a_config_error(tmp_path_factory, raw):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(raw)
    try:
        assert isinstance(read_yaml(path).data, dict)
    except ConfigError as error:
        assert all("any.yaml" in p for p in error.problems)


# Command lines


def test_a_users_mistake_is_one_message_and_exit_code_2(capsys):
    def main() -> None:
        load_config("iemocap", ["optim.lr=-1"])

    assert run_cli(main) == 2
    assert capsys.readouterr().err == "optim.lr: must be > 0, got -1 (override 'optim.lr=-1')\n"


def test_exit_codes_of_a_command():
    def interrupted() -> None:
        raise KeyboardInterrupt

    def broken() -> None:
        raise ValueError("a bug")

    assert (run_cli(lambda: None), run_cli(lambda: 1), run_cli(interrupted)) == (0, 1, 130)
    with pytest.raises(ValueError, match="a bug"):
        run_cli(broken)
