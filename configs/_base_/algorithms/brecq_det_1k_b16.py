# BRECQ for the embedded detectors: 1000 steps a unit for weights, 250 for step sizes, 16 images a step. The regularizer
# is relative to the loss of a unit: the linear layers of a two-stage head have losses a hundred times as large as those
# of the backbone, and with the usual factor a third of their roundings stays undecided. Ranges of 8-bit activations
# stay: the rate that suits steps of 4 bits overshoots their steps.
_base_ = ['./brecq.py']

changes = dict(
    weight=dict(
        num_iters=1000,
        lr=1e-2,
        batch_size=16,
        regularizer=dict(weight=1000, relative=True, beta_start=20, beta_end=2, warmup=0.2)),
    activation=dict(num_iters=250, batch_size=16, max_activation_bits=7))
brecq = [dict(s, **changes[s['target']]) if 'target' in s else s for s in _base_.brecq]
