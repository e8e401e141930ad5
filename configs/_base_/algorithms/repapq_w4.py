# RepAPQ for 4 bits: learned rounding instead of straight-through weights, 10000 steps a unit.
_base_ = ['./repapq.py']

changes = dict(
    num_iters=10000,
    rounding=dict(type='mmquant.AdaRound'),
    regularizer=dict(weight=0.01, beta_start=20, beta_end=2, warmup=0.2),
    lr=dict(rounding=1e-3, affine=1e-3, bias=1e-3, activation_scale=1e-4))
repapq = [dict(s, **changes) if 'target' in s else s for s in _base_.repapq]
