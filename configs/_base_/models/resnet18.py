_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet18_8xb32_in1k_20210831-fbbb1da6.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop')
