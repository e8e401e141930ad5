# RepAPQ's absolute errors and stage term for networks without branches to merge: no affine, only biases train with it.
_base_ = ['./repapq.py']

changes = dict(lr=dict(weight=1e-5, weight_scale=1e-5, bias=1e-3, activation_scale=1e-4))
left_out = ('mmquant.Reparameterize', 'mmquant.FoldOutputAffine')
repapq = [
    dict(s, **changes) if 'target' in s else dict(s, layers='all') if s['type'] == 'mmquant.InsertOutputAffine' else s
    for s in _base_.repapq if s['type'] not in left_out
]
