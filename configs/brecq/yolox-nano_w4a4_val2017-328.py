_base_ = [
    '../_base_/models/yolox-nano_val2017-328.py', '../_base_/quantizers/affine.py',
    '../_base_/algorithms/brecq_short.py', '../_base_/calibration/train2017-128_416.py'
]

_base_.quantizer.weight.bits = 4
_base_.quantizer.activation.bits = 4
# Few, large images a step, at a high rate. The regularizer is relative to the loss of a unit: heads have losses in the
# hundreds, and with the usual factor many roundings of their weights stay undecided.
_base_.brecq.weights.update(num_iters=400, batch_size=4)
_base_.brecq.weights.train.rounding.update(lr=4e-2)
_base_.brecq.weights.terms.rounding.update(weight=100, relative=True)
_base_.brecq.activations.update(num_iters=150, batch_size=4)
_base_.brecq.activations.train.activation_scale.update(lr=1e-3)
model = dict(quantizer=dict(_base_.quantizer, depthwise_channels=True))
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.brecq)
