# BRECQ for the embedded digits, with branches that merge first.
_base_ = ['./brecq_1k.py']

brecq = [dict(type='mmquant.Reparameterize'), *_base_.brecq]
