_base_ = 'mmpretrain::repvgg/repvgg-B1g2_8xb32_in1k.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='https://mmassets.onedl.ai/mmclassification/v0/repvgg/repvgg-B1g2_8xb32_in1k_20221213-ae6428fd.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop')
