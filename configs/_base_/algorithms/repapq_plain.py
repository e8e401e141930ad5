# RepAPQ's absolute errors and stage term for networks without branches to merge: no factors, only biases train. Weight
# ranges are searched, by the squared error.
_base_ = './repapq.py'

repapq = dict(
    merge=None,
    affines=dict(layers='all'),
    nearest_weights=dict(observer=dict(_delete_=True, type='mmquant.LpNormObserver', p=2)),
    joint=dict(
        train=dict(
            _delete_=True,
            weight=dict(lr=1e-5, schedule='cosine'),
            weight_scale=dict(lr=1e-5, schedule='cosine'),
            bias=dict(lr=1e-3, schedule='cosine'),
            activation_scale=dict(lr=1e-4, schedule='cosine'))),
    folded=None)
