# RepAPQ for 4 bits with 1000 steps a unit: for small models and images; roundings learn ten times faster, see brecq_1k.
_base_ = ['./repapq_w4.py']

changes = dict(num_iters=1000, lr=dict(rounding=1e-2, affine=1e-3, bias=1e-3, activation_scale=1e-4))
repapq = [dict(s, **changes) if 'target' in s else s for s in _base_.repapq]
