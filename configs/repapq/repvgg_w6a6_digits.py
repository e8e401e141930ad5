_base_ = './repvgg_w8a8_digits.py'

model = dict(quantizer=dict(weight=dict(bits=6), activation=dict(bits=6)))
