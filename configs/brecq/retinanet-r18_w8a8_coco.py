_base_ = './retinanet-r18_w4a4_coco.py'

model = dict(quantizer=dict(weight=dict(bits=8), activation=dict(bits=8)))
