# BRECQ with 2000 steps a unit for weights and 1000 for step sizes: for small models and images.
_base_ = ['./brecq.py']

num_iters = dict(weight=2000, activation=1000)
brecq = [dict(s, num_iters=num_iters[s['target']]) if 'target' in s else s for s in _base_.brecq]
