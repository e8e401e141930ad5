_base_ = '../../float/repvgg_digits.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='checkpoints/repvgg_digits.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop')
