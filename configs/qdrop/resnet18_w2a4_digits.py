_base_ = './resnet18_w4a4_digits.py'

model = dict(quantizer=dict(weight=dict(bits=2)))
