_base_ = [
    '../_base_/models/yolox-nano_coco.py', '../_base_/quantizers/affine.py', '../_base_/algorithms/lapq_det.py',
    '../_base_/calibration/coco_256_416.py'
]

_base_.quantizer.weight.bits = 4
_base_.quantizer.activation.bits = 8
model = dict(quantizer=_base_.quantizer)
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.lapq)
