# RepAPQ for 4 bits: learned rounding instead of straight-through weights, 10000 steps per unit.
_base_ = './repapq.py'

repapq = dict(
    joint=dict(
        num_iters=10000,
        rounding=dict(_delete_=True, type='mmquant.AdaRound'),
        terms=dict(
            rounding=dict(type='mmquant.RoundingRegularizer', weight=0.01, beta_start=20, beta_end=2, warmup=0.2)),
        train=dict(
            _delete_=True,
            rounding=dict(lr=1e-3),
            affine=dict(lr=1e-3, schedule='cosine'),
            bias=dict(lr=1e-3, schedule='cosine'),
            activation_scale=dict(lr=1e-4, schedule='cosine'))))
