_base_ = [
    '../_base_/models/mobilenet-v2_val1300.py', '../_base_/quantizers/per_tensor.py',
    '../_base_/algorithms/repapq_plain.py', '../_base_/calibration/val1300_calib1000.py'
]

_base_.quantizer.weight.bits = 8
_base_.quantizer.activation.bits = 8
# 200 steps per unit of 16 images: for runs without a GPU.
_base_.repapq.joint.update(num_iters=200, batch_size=16)
model = dict(quantizer=_base_.quantizer)
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.repapq, amp=True)
