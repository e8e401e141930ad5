# RepAPQ's absolute errors and stage term for networks without branches to merge: no factors, only biases train. Weight
# ranges are searched, by the squared error.
_base_ = ['./repapq.py']

changes = dict(lr=dict(weight=1e-5, weight_scale=1e-5, bias=1e-3, activation_scale=1e-4))
searched = dict(type='mmquant.InitWeightRange', observer=dict(type='mmquant.LpNormObserver', p=2))
left_out = ('mmquant.Reparameterize', 'mmquant.FoldOutputAffine')
repapq = [
    dict(s, **changes) if 'target' in s else searched if s['type'] == searched['type'] else
    dict(s, layers='all') if s['type'] == 'mmquant.InsertOutputAffine' else s
    for s in _base_.repapq if s['type'] not in left_out
]
