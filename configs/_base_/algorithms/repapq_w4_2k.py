# RepAPQ for 4 bits with 2000 steps a unit: for small models and images; roundings learn ten times faster, see brecq_2k.
_base_ = ['./repapq_w4.py']

changes = dict(num_iters=2000, lr=dict(rounding=1e-2, affine=1e-3, bias=1e-3, activation_scale=1e-4))
repapq = [dict(s, **changes) if 'target' in s else s for s in _base_.repapq]
