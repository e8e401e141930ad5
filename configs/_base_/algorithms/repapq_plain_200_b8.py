# RepAPQ without branches to merge, 200 steps a unit of 8 images: for detectors without a GPU.
_base_ = ['./repapq_plain.py']

repapq = [dict(s, num_iters=200, batch_size=8) if 'target' in s else s for s in _base_.repapq]
