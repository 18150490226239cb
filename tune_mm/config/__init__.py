"""YAML -> frozen, strict models. Every mistake of a file and of its overrides is reported at
once.      config = load_config("iemocap", ["method=dgl", "method.alpha=4", "optim.lr=3e-4"])
    config = with_overrides(config, {"method.alpha": 2.0})  A section with a plug-in
(`data`, `method`, `model.encoder`, `model.fusion`) is `{name: <file name>, ...fields}` or just
the name. Overriding the section by another name switches the plug-in: the fields of the one
before are dropped.
"""

from tune_mm.config.files import file_names, find_file
from tune_mm.config.loading import (
    check_field,
    dump_config,
    field_types,
    flatten,
    load_config,
    parse_config,
    to_dict,
    with_overrides,
)
from tune_mm.config.sections import (
    Config,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    Section,
    TrainConfig,
)
from tune_mm.config.yaml import Document, read_yaml
from tune_mm.errors import ConfigError, UserError

__all__ = [
    "Config",
    "ConfigError",
    "Document",
    "ModelConfig",
    "OptimConfig",
    "ScheduleConfig",
    "Section",
    "TrainConfig",
    "UserError",
    "check_field",
    "dump_config",
    "field_types",
    "file_names",
    "find_file",
    "flatten",
    "load_config",
    "parse_config",
    "read_yaml",
    "to_dict",
    "with_overrides",
]
