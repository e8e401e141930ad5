# BRECQ for small detectors: 1000 steps a unit for weights, 500 for step sizes, 8 images a step. The regularizer is
# relative to the loss of a unit: heads have losses in the hundreds, and with the usual factor many roundings of their
# weights stay undecided.
_base_ = ['./brecq.py']

changes = dict(
    weight=dict(
        num_iters=1000,
        lr=1e-2,
        batch_size=8,
        regularizer=dict(weight=100, relative=True, beta_start=20, beta_end=2, warmup=0.2)),
    activation=dict(num_iters=500, batch_size=8))
brecq = [dict(s, **changes[s['target']]) if 'target' in s else s for s in _base_.brecq]
