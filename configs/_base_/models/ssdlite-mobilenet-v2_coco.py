_base_ = 'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             quantizer=dict(depthwise_channels=True),
             float_checkpoint='https://download.openmmlab.com/mmdetection/v2.0/ssd/ssdlite_mobilenetv2_scratch_600e_coco/ssdlite_mobilenetv2_scratch_600e_coco_20210629_110627-974d9307.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop', chunk_size=2)
custom_hooks = []  # those of the base are for training
