_base_ = 'mmpretrain::deit/deit-tiny_4xb256_in1k.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='https://mmassets.onedl.ai/mmclassification/v0/deit/deit-tiny_pt-4xb256_in1k_20220218-13b382a0.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop')
