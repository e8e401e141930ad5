"""Steps by name: order, places, removal, names of results, mistakes."""
import pytest

from mmquant.algorithms import FoldBatchNorm
from mmquant.algorithms.step_list import build_steps, listed_steps, merged, ordered_steps
from mmquant.utils.building import ConfigError, differing_keys

BASE = dict(fold=dict(type='mmquant.Reparameterize', tolerance=1e-3), insert=dict(type='mmquant.InsertQuantizers'),
            weights=dict(type='mmquant.InitWeightRange'))


def new(**place):
    return dict(type='mmquant.FoldOutputAffine', **place)


def order(**changes):
    return list(ordered_steps(merged(BASE, {}) | changes))


def test_places():
    assert order() == ['fold', 'insert', 'weights'] and order(x=new()) == ['fold', 'insert', 'weights', 'x']
    assert order(x=new(after='fold')) == ['fold', 'x', 'insert', 'weights']
    assert order(x=new(before='fold')) == ['x', 'fold', 'insert', 'weights']
    assert order(x=new(after='fold'), y=new(after='fold')) == ['fold', 'x', 'y', 'insert', 'weights']
    assert order(x=new(after='y'), y=new(after='weights')) == ['fold', 'insert', 'weights', 'y', 'x']
    assert order(fold=None) == ['insert', 'weights']
    assert ordered_steps(dict(x=new(after='fold'), **BASE))['x'] == new()  # the place is no argument of the step


def test_merging():
    base = dict(a=1, b=dict(c=2, d=dict(e=3)))
    assert merged(base, dict(a=None, b=dict(c=5, d=dict(f=4)), g=[1])) == dict(b=dict(c=5, d=dict(e=3, f=4)), g=[1])
    assert merged(base, dict(b=7)) == dict(a=1, b=7) and base['b']['c'] == 2


def test_names_are_those_of_the_stages():
    assert [s.name for s in build_steps(BASE)] == ['fold', 'insert', 'weights']
    listed = [dict(type='mmquant.InitWeightRange'), dict(type='mmquant.InitWeightRange'),
              dict(type='mmquant.InitWeightRange', name='mine'), FoldBatchNorm()]
    assert list(ordered_steps(listed)) == ['InitWeightRange', 'InitWeightRange_2', 'mine', 'FoldBatchNorm']
    assert [s.name for s in build_steps(listed)] == ['nearest_weights', 'nearest_weights', 'mine', 'FoldBatchNorm']
    assert listed_steps(BASE)[1] == dict(type='mmquant.InsertQuantizers', name='insert')


def test_differences_name_the_step():
    """Records hold lists, because their keys are sorted and the order of steps matters."""
    other = merged(BASE, dict(fold=dict(tolerance=1e-2)))
    assert differing_keys(listed_steps(BASE), listed_steps(other), 'steps') == [
        'steps.fold.tolerance: 0.001 instead of 0.01']
    turned = dict(reversed(BASE.items()))
    assert differing_keys(listed_steps(BASE), listed_steps(turned), 'steps')


@pytest.mark.parametrize('steps, text', [
    ({}, r'train_cfg\.steps must be a dict of at least one step by name, or a list of steps, got \{\}'),
    ('brecq', "got 'brecq'"),
    (dict(BASE, wieghts=dict(observer=1)), r"no step 'wieghts' to change .*; did you mean 'weights'\?"),
    (dict(BASE, fold=dict(tolerance=1)), "no step 'fold' to change .*; valid ones: insert, weights"),
    (dict(BASE, x=new(after='folds')), r"train_cfg\.steps\.x\.after: no step 'folds'; did you mean 'fold'\?"),
    (dict(BASE, weights=None, x=new(before='weights')), "no step 'weights'; valid ones: fold, insert, x"),
    (dict(BASE, x=new(after='fold', before='insert')), 'has both "before" and "after"; keep one'),
    (dict(BASE, x=new(after='y'), y=new(after='x')), 'the places of x, y refer to each other in a circle'),
    (dict(BASE, x=dict(type='mmquant.FoldOutputAfine')), r"train_cfg\.steps\.x: unknown type .* 'mmquant.FoldOutput"),
])
def test_mistakes(steps, text):
    with pytest.raises(ConfigError, match=text):
        build_steps(steps)
