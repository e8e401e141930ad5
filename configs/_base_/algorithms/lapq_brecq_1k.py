# LAPQ's clips, then BRECQ's two stages from them: 1000 steps a unit for weights, 500 for step sizes.
_base_ = ['./lapq.py', './brecq_1k.py']

lapq_brecq = [*_base_.lapq, *[s for s in _base_.brecq if s['type'] == 'mmquant.Reconstruction']]
