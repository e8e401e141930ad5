_base_ = [
    '../_base_/models/yolox-nano_val2017-328.py', '../_base_/quantizers/per_tensor.py',
    '../_base_/algorithms/repapq_plain.py', '../_base_/calibration/train2017-128_416.py'
]

_base_.quantizer.weight.bits = 8
_base_.quantizer.activation.bits = 8
# 200 steps per unit of 8 images: for detectors without a GPU.
_base_.repapq.joint.update(num_iters=200, batch_size=8)
model = dict(quantizer=_base_.quantizer)
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.repapq)
