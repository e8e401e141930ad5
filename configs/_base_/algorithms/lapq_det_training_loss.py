# LAPQ for detectors of one stage by their training loss; the calibration images need boxes (digitsdet_128_boxes.py).
_base_ = ['./lapq_det.py']

lapq = [
    dict(s, objective=dict(type='mmquant.TrainingLoss')) if 'objective' in s else s for s in _base_.lapq
]
