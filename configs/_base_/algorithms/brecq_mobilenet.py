# BRECQ for MobileNetV2: a stronger pull of the roundings, as the authors advise for depthwise convolutions.
_base_ = ['./brecq.py']

brecq = [dict(s, regularizer=dict(s['regularizer'], weight=0.1)) if 'regularizer' in s else s for s in _base_.brecq]
