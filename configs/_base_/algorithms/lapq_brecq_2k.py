# LAPQ's clips, then BRECQ's two stages from them: 2000 steps a unit for weights, 1000 for step sizes.
_base_ = ['./lapq.py', './brecq_2k.py']

lapq_brecq = [*_base_.lapq, *[s for s in _base_.brecq if s['type'] == 'mmquant.Reconstruction']]
