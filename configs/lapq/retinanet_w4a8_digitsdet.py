_base_ = './retinanet_w4a4_digitsdet.py'

model = dict(quantizer=dict(activation=dict(bits=8)))
