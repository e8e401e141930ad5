_base_ = './yolox-s_w4a8_coco.py'

model = dict(quantizer=dict(weight=dict(bits=8)))
