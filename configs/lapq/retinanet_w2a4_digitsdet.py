_base_ = './retinanet_w4a4_digitsdet.py'

model = dict(quantizer=dict(weight=dict(bits=2)))
