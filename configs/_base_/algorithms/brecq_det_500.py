# BRECQ for the embedded detectors: 500 steps a unit for weights, 250 for step sizes, 16 images a step. Errors weigh by
# squared gradients: the scores of background are large, and their squared errors would hide those that decide.
_base_ = ['./brecq.py']

fisher = dict(type='mmquant.FisherDiagLoss')
changes = dict(
    weight=dict(num_iters=500, lr=1e-2, batch_size=16, loss=fisher),
    activation=dict(num_iters=250, batch_size=16, loss=fisher))
brecq = [dict(s, **changes[s['target']]) if 'target' in s else s for s in _base_.brecq]
