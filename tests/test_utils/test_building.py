import copy
from dataclasses import dataclass

import pytest
from mmengine.registry import Registry

from mmquant.utils.building import ConfigError, build, check_keys, check_types, closest, differing_keys, plain

THINGS = Registry('thing', scope='mmquant')


@THINGS.register_module()
class Thing:

    def __init__(self, size: int, color: str = 'red') -> None:
        if size < 0:
            raise ValueError(f'size must not be negative, got {size}')
        self.size, self.color = size, color


def test_closest():
    assert closest('sise', ['size', 'color']) == "did you mean 'size'?"
    assert closest('xyz', ['size', 'color']) == 'valid ones: color, size' and closest(3, [3]) == "did you mean '3'?"


def test_check_keys():
    check_keys({}, ('a',), 'here')
    check_keys(dict(a=1), ('a',), 'here')
    with pytest.raises(ConfigError, match=r"here: unknown key 'colour'; did you mean 'color'\?"):
        check_keys(dict(colour=1), ('size', 'color'), 'here')


def test_build():
    built = build(THINGS, dict(type='Thing', size=3), 'x', color='blue')
    assert (built.size, built.color) == (3, 'blue') and build(THINGS, built, 'x') is built
    assert build(THINGS, dict(type=Thing, size=3, color='green'), 'x', color='blue').color == 'green'


@pytest.mark.parametrize('cfg, text', [
    (None, r'x: expected dict\(type=...\), got None'), ('Thing', r"x: expected dict\(type=...\), got 'Thing'"),
    (dict(size=3), r'x: the key "type" is missing in'), (dict(type='Thng', size=3), r"x: unknown type 'Thng'"),
    (dict(type='Thing', sise=3), r"x \(Thing\): unknown key 'sise'; did you mean 'size'\?"),
    (dict(type='Thing'), r"x \(Thing\): the key 'size' is required"),
    (dict(type='Thing', size=-1), r'x \(Thing\): size must not be negative, got -1'),
    (dict(type='Thing', size='a'), r"x \(Thing\): size must be int, got"),
])
def test_mistakes(cfg, text):
    with pytest.raises(ConfigError, match=text):
        build(THINGS, cfg, 'x')
    assert issubclass(ConfigError, ValueError)


def test_differing_keys():
    a = plain(dict(x=1, y=dict(z=(1, 2), w='s'), t=[dict(k=1)], type=int))
    assert differing_keys(a, copy.deepcopy(a)) == [] and a['type'] == "<class 'int'>"
    b = copy.deepcopy(a)
    b['y']['w'], b['new'], b['t'][0]['k'] = 'u', None, 2
    assert differing_keys(a, b) == ['t.0.k: 1 instead of 2', "y.w: 's' instead of 'u'"]
    b['t'].append(3)
    assert differing_keys(a, b)[0] == 't: a list of 1 instead of a list of 2'
    assert len(differing_keys(dict(a='x' * 500), dict(a=1))[0]) < 100


@dataclass
class Typed:
    number: float = 1.0
    words: list[str] | None = None
    choice: int | str = 0
    on: bool = False
    anything: object = None


@pytest.mark.parametrize('args', [dict(number=3), dict(words=('a',)), dict(words=None), dict(choice='x', on=True),
                                  dict(anything=3, unknown=4)])
def test_fitting_types(args):
    check_types(args, Typed, 'here')


@pytest.mark.parametrize('args, text', [
    (dict(number='3'), "here: number must be float, got '3'"), (dict(number=True), 'number must be float, got True'),
    (dict(words=3), r'words must be list\[str\] \| None, got 3'),
    (dict(choice=1.5), r'choice must be int \| str, got 1\.5'),
    (dict(on=1), 'on must be bool, got 1')])
def test_other_types(args, text):
    with pytest.raises(ConfigError, match=text):
        check_types(args, Typed, 'here')
