_base_ = './fcos-r50_w4a8_coco.py'

model = dict(quantizer=dict(weight=dict(bits=8)))
