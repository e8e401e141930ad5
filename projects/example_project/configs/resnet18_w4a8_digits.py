_base_ = [
    '../../../configs/_base_/models/resnet18_digits.py', '../../../configs/_base_/quantizers/affine.py',
    '../../../configs/_base_/calibration/digits_256.py'
]
custom_imports = dict(imports=['projects.example_project.bias_correction'])

_base_.quantizer.weight.bits = 4
_base_.quantizer.activation.bits = 8
model = dict(quantizer=_base_.quantizer)
train_cfg = dict(
    dataloader=_base_.calibration_dataloader,
    steps=dict(
        fold=dict(type='mmquant.FoldBatchNorm'),
        insert=dict(type='mmquant.InsertQuantizers'),
        nearest_weights=dict(type='mmquant.InitWeightRange'),
        bias_correction=dict(type='mmquant.BiasCorrection', num_images=64),
        activation_ranges=dict(type='mmquant.InitActivationRange')))
