import pytest

from mmquant.models.policy import BitPolicy


def test_defaults():
    policy = BitPolicy(2, 4)
    assert policy.weight_bits('a', True, False) == 2 and policy.activation_bits(['a'], True, True) == 4
    assert policy.matmul_bits('a') == 4 and BitPolicy(2, 4, matmul_bits=8).matmul_bits('a') == 8
    assert BitPolicy(None, None).weight_bits('a', False, False) is None and BitPolicy(2, None).matmul_bits('a') is None


def test_positions():
    policy = BitPolicy(2, 4, overrides=[dict(position='first', w_bits=8, out_bits=7), dict(position='last', w_bits=6,
                                                                                       in_bits=5)])
    assert [policy.weight_bits('x', first, last) for first, last in ((1, 0), (0, 1), (0, 0), (1, 1))] == [8, 6, 2, 6]
    assert [policy.activation_bits(['x'], a, b) for a, b in ((1, 0), (0, 1), (0, 0), (1, 1))] == [7, 5, 4, 5]


def test_patterns_match_the_whole_name_and_the_last_match_wins():
    policy = BitPolicy(2, 4, overrides=[dict(pattern='conv', w_bits=3), dict(pattern=r'.*\.conv', w_bits=5),
                                        dict(pattern=r'a\.conv', w_bits=6)])
    assert [policy.weight_bits(n, False, False) for n in ('conv', 'b.conv', 'a.conv', 'conv2')] == [3, 5, 6, 2]


def test_unused_patterns():
    policy = BitPolicy(2, 4, overrides=[dict(pattern='conv', w_bits=3), dict(pattern='cnov', w_bits=3)])
    policy.weight_bits('conv', False, False)
    assert policy.unused_patterns() == ['cnov']


@pytest.mark.parametrize('bits, text', [(1, r'bits=1 is not supported: expected an int in 2\.\.16'), (17, r'2\.\.16'),
                                        (4.0, 'w_bits must be a whole number from 2 to 16, or None for float, got 4.0'),
                                        (True, 'got True'), ('4', "got '4'")])
def test_bits_outside_the_range(bits, text):
    with pytest.raises(ValueError, match=text):
        BitPolicy(bits, 4)
    with pytest.raises(ValueError, match=text.replace('w_bits', r'quantizer\.overrides\[0\]\.w_bits')):
        BitPolicy(4, 4, overrides=[dict(pattern='a', w_bits=bits)])


@pytest.mark.parametrize('rule, text', [
    (dict(pattern='a', w_bit=4), r"quantizer\.overrides\[0\] has the unknown key 'w_bit'; did you mean 'w_bits'\?"),
    (dict(pattern='a', zzz=4), "unknown key 'zzz'; known keys: position, pattern, w_bits"),
    (dict(w_bits=4), 'needs exactly one of the selectors "position" and "pattern"'),
    (dict(pattern='a', position='first'), 'needs exactly one of the selectors'),
    (dict(position='middle'), 'position must be "first" or "last", got \'middle\''),
    (dict(pattern='a('), r"pattern 'a\(' is no regular expression"),
])
def test_wrong_overrides(rule, text):
    with pytest.raises(ValueError, match=text):
        BitPolicy(4, 4, overrides=[rule])
