# BRECQ for MobileNetV2 with 1000 + 500 steps a unit of 16 images: half the memory and time of batches of 32, for CPUs.
_base_ = ['./brecq_mobilenet_1k.py']

brecq = [dict(s, batch_size=16) if 'target' in s else s for s in _base_.brecq]
