# BRECQ whose biases are corrected when the weights are done, for detectors: their boxes and scores show a shift of the
# mean at once. Ranges of 8-bit activations stay: the rate that suits steps of 4 bits overshoots their steps.
_base_ = ['./brecq.py']

weights = next(i for i, s in enumerate(_base_.brecq) if s.get('target') == 'weight') + 1
brecq = [
    *_base_.brecq[:weights],
    dict(type='mmquant.InsertOutputAffine', layers='all'),
    dict(type='mmquant.CorrectBias'),
    *(dict(s, max_activation_bits=7) if s.get('target') == 'activation' else s for s in _base_.brecq[weights:]),
]
