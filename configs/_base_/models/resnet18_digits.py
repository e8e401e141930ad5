_base_ = '../../float/resnet18_digits.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='checkpoints/resnet18_digits.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop')
