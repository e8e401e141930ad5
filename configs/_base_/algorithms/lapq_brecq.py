# LAPQ's clips, then BRECQ's two stages from them.
_base_ = ['./lapq.py', './brecq.py']

lapq_brecq = [*_base_.lapq, *[s for s in _base_.brecq if s['type'] == 'mmquant.Reconstruction']]
