import pytest

from mmquant.models.policy import QuantizerPolicy, whole_config
from mmquant.quantizers import UniformAffineQuantizer
from mmquant.utils.building import ConfigError

AFFINE, NO_ZERO = 'mmquant.UniformAffineQuantizer', 'mmquant.NoZeroQuantizer'


def policy_of(w_bits=2, a_bits=4, overrides=(), **more) -> QuantizerPolicy:
    return QuantizerPolicy(dict(weight=dict(type=AFFINE, bits=w_bits, granularity='channel'),
                                activation=dict(type=AFFINE, bits=a_bits), overrides=overrides, **more))


def w_bits(policy, name, first=False, last=False):
    found = policy.weight(name, first, last)
    return found and found['bits']


def a_bits(policy, readers, from_first=False, into_last=False):
    found = policy.activation(readers, from_first, into_last)
    return found and found['bits']


def test_defaults():
    policy = policy_of()
    assert policy.weight('a', True, False) == dict(type=AFFINE, bits=2, granularity='channel')
    assert policy.activation(['a'], True, True) == policy.operand('a') == dict(type=AFFINE, bits=4)
    assert policy_of(matmul_bits=8).operand('a')['bits'] == 8
    assert w_bits(policy_of(None, None), 'a') is None and policy_of(2, None).operand('a') is None


def test_positions():
    policy = policy_of(overrides=[dict(position='first', w_bits=8, out_bits=7), dict(position='last', w_bits=6,
                                                                                     in_bits=5)])
    assert [w_bits(policy, 'x', *p) for p in ((1, 0), (0, 1), (0, 0), (1, 1))] == [8, 6, 2, 6]
    assert [a_bits(policy, ['x'], *p) for p in ((1, 0), (0, 1), (0, 0), (1, 1))] == [7, 5, 4, 5]


def test_widths_by_position_leave_float_alone():
    """The same overrides serve W4A4, weights only and activations only."""
    rules = [dict(position='first', w_bits=8, out_bits=8), dict(position='last', w_bits=8, in_bits=8)]
    assert a_bits(policy_of(4, None, rules), ['x'], True, True) is None
    assert w_bits(policy_of(4, None, rules), 'x', True) == 8
    assert w_bits(policy_of(None, 4, rules), 'x', True, True) is None
    rules[0] = dict(position='first', weight=dict(bits=8))
    assert w_bits(policy_of(None, 4, rules), 'x', True) == 8


def test_patterns_match_the_whole_name_and_the_last_match_wins():
    policy = policy_of(overrides=[dict(pattern='conv', w_bits=3), dict(pattern=r'.*\.conv', w_bits=5, a_bits=8),
                                  dict(pattern=r'a\.conv', w_bits=6, a_bits=3)])
    assert [w_bits(policy, n) for n in ('conv', 'b.conv', 'a.conv', 'conv2')] == [3, 5, 6, 2]
    assert [a_bits(policy, [n]) for n in ('b.conv', 'a.conv')] == [8, 3]


def test_a_child_config_is_merged_and_another_type_replaces():
    """The default of every grid: the first layer uniform at 8 bits, the rest on another grid."""
    weight = dict(type=NO_ZERO, bits=3, granularity='channel', keep_mean=True)
    policy = QuantizerPolicy(dict(weight=weight, activation=dict(type=AFFINE, bits=4), overrides=[
        dict(position='first', weight=dict(type=AFFINE, bits=8)), dict(pattern='b', weight=dict(bits=5)),
        dict(pattern='c', weight=dict(type=AFFINE)), dict(pattern='c', activation=dict(symmetric=True), w_bits=6)]))
    assert policy.weight('a', True, False) == dict(type=AFFINE, bits=8)
    assert policy.weight('a', False, False) == weight and policy.weight('b', False, False) == {**weight, 'bits': 5}
    assert policy.weight('c', False, False) == dict(type=AFFINE, bits=6)
    assert policy.activation(['c'], False, False) == dict(type=AFFINE, bits=4, symmetric=True)
    assert policy.operand('c') == dict(type=AFFINE, bits=4, symmetric=True)


def test_the_widest_wish_wins():
    policy = policy_of(overrides=[dict(pattern='a', activation=dict(symmetric=True)), dict(pattern='b', a_bits=6),
                                  dict(pattern='c', a_bits=None), dict(pattern='d', a_bits=6)])
    assert policy.activation(['a', 'x'], False, False) == dict(type=AFFINE, bits=4, symmetric=True)
    assert policy.activation(['a', 'b'], False, False) == dict(type=AFFINE, bits=6)
    assert policy.activation(['a', 'c', 'b'], False, False) is None and a_bits(policy, ['x', 'b']) == 6


def test_bits_none_and_bits_left_out():
    assert whole_config(dict(type=AFFINE), 'here') == dict(type=AFFINE, bits=8)
    assert whole_config(dict(type=AFFINE, bits=None), 'here') == dict(type=AFFINE, bits=None)
    by_class = whole_config(dict(type=UniformAffineQuantizer, bits=3), 'here')
    assert by_class == dict(type='UniformAffineQuantizer', bits=3)


def test_patterns_that_match_nothing():
    policy = policy_of(overrides=[dict(pattern='conv', w_bits=3), dict(pattern='cnov', w_bits=3)])
    with pytest.raises(ConfigError, match=r"overrides\[1\]: the pattern 'cnov' matches no layer .* such as 'conv'"):
        policy.check_patterns(['fc', 'conv'], ['conv'])


@pytest.mark.parametrize('bits, text', [(1, r'bits=1 is not supported: expected an int in 2\.\.16'), (17, r'2\.\.16'),
                                        (4.0, r'bits must be .*int.*, got 4\.0'), (True, 'got True'), ('4', "got '4'")])
def test_bits_that_the_grid_does_not_take(bits, text):
    with pytest.raises(ConfigError, match=rf'quantizer\.weight .*{text}'):
        policy_of(bits)
    for key, change in (('w_bits', bits), ('weight', dict(bits=bits)), ('a_bits', bits), ('matmul_bits', bits)):
        with pytest.raises(ConfigError, match=rf'quantizer\.overrides\[0\]\.{key} .*{text}'):
            policy_of(overrides=[dict(pattern='a', **{key: change})])


@pytest.mark.parametrize('rule, text', [
    (dict(pattern='a', w_bit=4), r"quantizer\.overrides\[0\]: unknown key 'w_bit'; did you mean 'w_bits'\?"),
    (dict(pattern='a', zzz=4), "unknown key 'zzz'; valid ones: a_bits, activation, in_bits"),
    (dict(w_bits=4), 'needs exactly one of the selectors "position" and "pattern"'),
    (dict(pattern='a', position='first'), 'needs exactly one of the selectors'),
    (dict(position='middle'), 'position must be "first" or "last", got \'middle\''),
    (dict(pattern='a('), r"pattern 'a\(' is no regular expression"),
    (dict(pattern='a', weight=8), r'overrides\[0\]\.weight: expected dict\(bits=\.\.\., \.\.\.\), got 8'),
    (dict(pattern='a', weight=dict(bit=8)), r"overrides\[0\]\.weight .*unknown key 'bit'; did you mean 'bits'"),
    (dict(position='first', output=dict(type='mmquant.NoZero')),
     r"overrides\[0\]\.output: unknown type 'mmquant\.NoZero'; did you mean 'mmquant\.NoZeroQuantizer'"),
    (dict(position='first', a_bits=8), "'a_bits' says nothing with position='first', which takes w_bits, out_bits"),
    (dict(pattern='x', in_bits=8), "'in_bits' says nothing with pattern='x', which takes w_bits, a_bits, matmul_bits"),
    (dict(pattern='x', weight=dict(granularity=object)), r'overrides\[0\]\.weight'),
])
def test_wrong_overrides(rule, text):
    with pytest.raises(ConfigError, match=text):
        policy_of(overrides=[rule])
