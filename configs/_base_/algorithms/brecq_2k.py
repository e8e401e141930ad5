# BRECQ with 2000 steps a unit for weights and 1000 for step sizes: for small models and images. The rate of the
# roundings is ten times the paper's, so that they reach a decision within a tenth of its steps.
_base_ = ['./brecq.py']

changes = dict(weight=dict(num_iters=2000, lr=1e-2), activation=dict(num_iters=1000))
brecq = [dict(s, **changes[s['target']]) if 'target' in s else s for s in _base_.brecq]
