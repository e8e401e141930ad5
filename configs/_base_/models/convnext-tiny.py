_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='https://mmassets.onedl.ai/mmclassification/v0/convnext/convnext-tiny_32xb128_in1k_20221207-998cf3e9.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop')
custom_hooks = []  # those of the base are for training
