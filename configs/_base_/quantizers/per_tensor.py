# Affine, one scale for each weight tensor and each activation tensor; bits stand in the leaf.
_base_ = './affine.py'

quantizer = dict(weight=dict(granularity='tensor'))
