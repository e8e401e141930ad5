# BRECQ for small detectors: 2000 steps a unit for weights, 1000 for step sizes, 8 images a step.
_base_ = ['./brecq.py']

changes = dict(weight=dict(num_iters=2000, lr=1e-2, batch_size=8), activation=dict(num_iters=1000, batch_size=8))
brecq = [dict(s, **changes[s['target']]) if 'target' in s else s for s in _base_.brecq]
