import importlib
import sys

import mmengine.hooks  # noqa: F401  registers its hooks
import pytest
from mmengine.registry import HOOKS, MODELS

from mmquant.utils.registry_errors import explain, origin


def raised(function, *args, **kwargs) -> Exception:
    with pytest.raises(Exception) as caught:
        function(*args, **kwargs)
    return caught.value


def test_unknown_type():
    error = raised(HOOKS.build, dict(type='LogerHook'))
    assert isinstance(error, KeyError)
    assert explain(error) == "unknown type 'LogerHook' in the config (kind: hook); did you mean 'LoggerHook'?"
    assert explain(raised(HOOKS.build, dict(type='xyzzyx'))).endswith('there is nothing of a similar name')
    text = explain(raised(MODELS.build, dict(type='mmquant.QuantisedModel')))
    assert "did you mean 'mmquant.QuantizedModel'?" in text


def test_unknown_key():
    error = raised(HOOKS.build, dict(type='LoggerHook', intervall=3))
    assert explain(error) == "unknown key 'intervall' for LoggerHook in the config; did you mean 'interval'?"


def test_other_errors_are_left_alone():
    own = TypeError("f() got an unexpected keyword argument 'x'")
    for error in (KeyError('a'), TypeError("'<' not supported"), own, ValueError('x is not in the y registry')):
        assert explain(error) is None


def test_origin_is_what_was_being_built():
    text = origin(raised(HOOKS.build, dict(type='EMAHook', begin_iter=-1)))
    assert text.startswith("while building dict(type='EMAHook', begin_iter=-1), in ") and ', line ' in text
    assert 'test_utils/test_registry_errors.py, line' in origin(raised(lambda: 1 / 0))


def test_operators_that_were_not_compiled(monkeypatch):
    """The message says how to build them."""
    monkeypatch.setitem(sys.modules, 'mmcv._ext', None)
    text = explain(raised(importlib.import_module, 'mmcv._ext'))
    assert text.startswith('mmcv was installed without its compiled operators')
    assert 'pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps onedl-mmcv' in text
    assert explain(ModuleNotFoundError("No module named 'mmcv._ext'")) == text
    assert explain(ModuleNotFoundError("No module named 'scipy'")) is None
    try:
        try:
            importlib.import_module('mmcv._ext')
        except ImportError as error:
            raise ValueError('the evaluation failed') from error
    except ValueError as error:
        assert explain(error) == text
