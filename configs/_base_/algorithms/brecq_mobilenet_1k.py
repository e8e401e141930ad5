# BRECQ for MobileNetV2 with 1000 steps a unit for weights and 500 for step sizes: for runs without a GPU.
_base_ = ['./brecq_mobilenet.py']

num_iters = dict(weight=1000, activation=500)
brecq = [dict(s, num_iters=num_iters[s['target']]) if 'target' in s else s for s in _base_.brecq]
