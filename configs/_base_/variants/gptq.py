# What the settings of GPTQ do, and BRECQ for the weights alone.
_base_ = ['../algorithms/brecq_short.py']

variants = {
    'Nearest': dict(steps=dict(weights=None)),
    'GPTQ': dict(),
    'GPTQ, inputs in their given order': dict(steps=dict(weights=dict(solver=dict(act_order=False)))),
    'GPTQ, each layer on float inputs': dict(steps=dict(weights=dict(inputs='float'))),
    'GPTQ, biases corrected': dict(steps=dict(biases=dict(type='mmquant.CorrectBias', after='weights'))),
    'BRECQ, weights alone': dict(algorithm=_base_.brecq, steps=dict(activations=None)),
}
