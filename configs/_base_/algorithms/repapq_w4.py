# RepAPQ for 4 bits: learned rounding instead of straight-through weights, 10000 steps per unit.
_base_ = './repapq.py'

repapq = dict(
    joint=dict(
        num_iters=10000,
        rounding=dict(_delete_=True, type='mmquant.AdaRound'),
        regularizer=dict(weight=0.01, beta_start=20, beta_end=2, warmup=0.2),
        lr=dict(_delete_=True, rounding=1e-3, affine=1e-3, bias=1e-3, activation_scale=1e-4)))
