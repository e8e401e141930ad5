# mmdet publishes no weights for this model: train them with its config.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py'

model = dict(_delete_=True, type='mmquant.QuantizedModel', architecture=_base_.model,
             float_checkpoint='weights/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.pth')
train_cfg = dict(_delete_=True, type='mmquant.CalibrationLoop', chunk_size=2)
