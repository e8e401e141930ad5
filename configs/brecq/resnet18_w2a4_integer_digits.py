_base_ = [
    '../_base_/models/resnet18_digits.py', '../_base_/quantizers/integer.py', '../_base_/algorithms/brecq_short.py',
    '../_base_/calibration/digits_256.py'
]

# Reconstruction sees the quantizers between operations, and first and last weights without zero points.
_base_.quantizer.weight.bits = 2
_base_.quantizer.activation.bits = 4
_base_.brecq.deploy = dict(type='mmquant.InsertDeployQuantizers', profile='ort_cpu', after='insert')
_base_.brecq.rounded_biases = dict(type='mmquant.RoundBiases', profile='ort_cpu')
model = dict(quantizer=_base_.quantizer)
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.brecq)
