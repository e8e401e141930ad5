_base_ = './detr-r50_w4a8_coco.py'

model = dict(quantizer=dict(weight=dict(bits=8)))
