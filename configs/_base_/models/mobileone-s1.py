_base_ = 'mmpretrain::mobileone/mobileone-s1_8xb32_in1k.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='https://mmassets.onedl.ai/mmclassification/v0/mobileone/mobileone-s1_8xb32_in1k_20221110-ceeef467.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop')
custom_hooks = []  # those of the base are for training
