_base_ = [
    '../_base_/models/mobileone_digits.py', '../_base_/quantizers/affine.py', '../_base_/algorithms/repapq_w4.py',
    '../_base_/calibration/digits_256.py'
]

_base_.quantizer.weight.bits = 4
_base_.quantizer.activation.bits = 4
# A tenth of the steps, for small models and images; roundings learn ten times faster.
_base_.repapq.joint.num_iters = 1000
_base_.repapq.joint.train.rounding.lr = 1e-2
model = dict(quantizer=dict(_base_.quantizer, block_types=['MobileOneBlock']))
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.repapq)
