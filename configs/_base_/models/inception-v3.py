_base_ = 'mmpretrain::inception_v3/inception-v3_8xb32_in1k.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='https://mmassets.onedl.ai/mmclassification/v0/inception-v3/inception-v3_3rdparty_8xb32_in1k_20220615-dcd4d910.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop')
