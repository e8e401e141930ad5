# As brecq_det_1k, with biases corrected when the weights are done and ranges of activations as they were found.
_base_ = ['./brecq_det_1k.py']

weights = next(i for i, s in enumerate(_base_.brecq) if s.get('target') == 'weight') + 1
brecq = [
    *_base_.brecq[:weights],
    dict(type='mmquant.InsertOutputAffine', layers='all'),
    dict(type='mmquant.CorrectBias'),
    *(dict(s, max_activation_bits=7) if s.get('target') == 'activation' else s for s in _base_.brecq[weights:]),
]
