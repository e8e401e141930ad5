_base_ = [
    '../../../configs/float/resnet18_digits.py', '../../../configs/_base_/quantizers/w4a8_affine.py',
    '../../../configs/_base_/calibration/digits_256.py'
]
custom_imports = dict(imports=['projects.example_project.bias_correction'])

model = dict(
    _delete_=True,
    type='mmquant.QuantizedModel',
    architecture=_base_.model,
    quantizer=_base_.quantizer,
    float_checkpoint='checkpoints/resnet18_digits.pth')
train_cfg = dict(
    _delete_=True,
    type='mmquant.CalibrationLoop',
    dataloader=_base_.calibration_dataloader,
    steps=[
        dict(type='mmquant.FoldBatchNorm'),
        dict(type='mmquant.InsertQuantizers'),
        dict(type='mmquant.InitWeightRange'),
        dict(type='mmquant.BiasCorrection', num_images=64),
        dict(type='mmquant.InitActivationRange'),
    ])
custom_hooks = [dict(type='mmquant.EvaluationHook')]
