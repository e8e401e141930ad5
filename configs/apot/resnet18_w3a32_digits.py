_base_ = './resnet18_w4a32_digits.py'

model = dict(quantizer=dict(weight=dict(bits=3)))
