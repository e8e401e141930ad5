# RepAPQ for 6 bits: 2000 steps a unit.
_base_ = ['./repapq.py']

repapq = [dict(s, num_iters=2000) if 'target' in s else s for s in _base_.repapq]
