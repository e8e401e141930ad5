# RepAPQ's absolute errors and stage term for networks without branches to merge: no factors, only biases train. Weight
# ranges are searched, by the squared error.
_base_ = './repapq.py'

repapq = dict(
    merge=None,
    affines=dict(layers='all'),
    nearest_weights=dict(observer=dict(_delete_=True, type='mmquant.LpNormObserver', p=2)),
    joint=dict(lr=dict(_delete_=True, weight=1e-5, weight_scale=1e-5, bias=1e-3, activation_scale=1e-4)),
    folded=None)
