_base_ = 'mmpretrain::resnet/resnet101_8xb32_in1k.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet101_8xb32_in1k_20210831-539c63f8.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop')
