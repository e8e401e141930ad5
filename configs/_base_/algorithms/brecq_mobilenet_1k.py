# BRECQ for MobileNetV2 with 1000 steps a unit for weights and 500 for step sizes: for runs without a GPU.
_base_ = ['./brecq_mobilenet.py']

changes = dict(weight=dict(num_iters=1000, lr=1e-2), activation=dict(num_iters=500))
brecq = [dict(s, **changes[s['target']]) if 'target' in s else s for s in _base_.brecq]
