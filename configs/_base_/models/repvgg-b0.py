_base_ = 'mmpretrain::repvgg/repvgg-B0_8xb32_in1k.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='https://mmassets.onedl.ai/mmclassification/v0/repvgg/repvgg-B0_8xb32_in1k_20221213-5091ecc7.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop')
