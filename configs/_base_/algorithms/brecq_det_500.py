# BRECQ for the embedded detectors: 500 steps a unit for weights, 250 for step sizes, 16 images a step.
_base_ = ['./brecq_bias.py']

changes = dict(weight=dict(num_iters=500, lr=1e-2, batch_size=16), activation=dict(num_iters=250, batch_size=16))
brecq = [dict(s, **changes[s['target']]) if 'target' in s else s for s in _base_.brecq]
