_base_ = 'mmpretrain::regnet/regnetx-3.2gf_8xb64_in1k.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='https://mmassets.onedl.ai/mmclassification/v0/regnet/regnetx-3.2gf_8xb64_in1k_20211213-1fdd82ae.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop')
custom_hooks = []  # those of the base are for training
