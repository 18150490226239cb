"""A method reads its tunable settings from `hp` alone."""

import copy
import pickle

import pytest

from tests import support
from tune_mm import plugins
from tune_mm.core.build import method_of
from tune_mm.core.settings import float_fields

METHODS = plugins.available("methods")


@pytest.mark.parametrize("name", METHODS)
def test_a_tunable_setting_cannot_be_read_from_the_config(name):
    config = support.config(name)
    method = method_of(config)
    tunable = {key.partition(".")[0] for key in float_fields(config.method)}
    for field in tunable:
        message = rf'method\.{field} is tunable: read hp\["{field}"\]'
        with pytest.raises(AttributeError, match=message):
            getattr(method.config, field)
        assert method.value(field) == getattr(config.method, field)
    for field in type(config.method).model_fields.keys() - tunable:
        assert getattr(method.config, field) == getattr(config.method, field)


def test_copies_keep_what_they_refuse():
    method = method_of(support.config("dgl", alpha=2.0))
    for other in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert other.config.truncate_unimodal is True
        assert other.value("alpha") == 2.0
        with pytest.raises(AttributeError, match=r"method\.alpha is tunable"):
            _ = other.config.alpha
