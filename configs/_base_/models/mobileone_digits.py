_base_ = '../../float/mobileone_digits.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='checkpoints/mobileone_digits.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop')
