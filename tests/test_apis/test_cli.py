import argparse

import pytest

from mmquant.apis.cli import add_common_arguments
from mmquant.utils.building import ConfigError


def options(*words: str) -> dict:
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    return parser.parse_args(['--cfg-options', *words]).cfg_options


def test_options_are_read():
    assert options('a.b=1', 'c=[x,2]', 'd=None') == {'a.b': 1, 'c': ['x', 2], 'd': None}


@pytest.mark.parametrize('word', ["custom_hooks=[dict(type='A',stages=['b'])]", 'a=[1,(2]', 'no_value'])
def test_what_cannot_be_read_is_told(word):
    with pytest.raises(ConfigError, match='--cfg-options: cannot read .* Reach into dicts by dotted keys') as caught:
        options('a=1', word)
    assert repr(word) in str(caught.value)
