# BRECQ for models that merge their training-time branches first (RepVGG).
_base_ = ['./brecq.py']

brecq = [dict(type='mmquant.Reparameterize'), *_base_.brecq]
