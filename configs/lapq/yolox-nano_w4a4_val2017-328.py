_base_ = [
    '../_base_/models/yolox-nano_val2017-328.py', '../_base_/quantizers/affine.py',
    '../_base_/algorithms/lapq_det.py', '../_base_/calibration/train2017-128_416.py'
]

_base_.quantizer.weight.bits = 4
_base_.quantizer.activation.bits = 4
model = dict(quantizer=dict(_base_.quantizer, depthwise_channels=True))
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.lapq)
