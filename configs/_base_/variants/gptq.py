# What the settings of GPTQ do, and BRECQ for the weights alone.
_base_ = ['../algorithms/brecq_short.py']

variants = {
    'Nearest': dict(steps=dict(weights=None)),
    'GPTQ': dict(),
    'GPTQ, inputs in their given order': dict(steps=dict(weights=dict(solver=dict(act_order=False)))),
    'GPTQ, each layer on float inputs': dict(steps=dict(weights=dict(inputs='float'))),
    'GPTQ, biases corrected': dict(steps=dict(biases=dict(type='mmquant.CorrectBias', after='weights'))),
    'BRECQ, weights alone': dict(algorithm=_base_.brecq, steps=dict(activations=None)),
    # for networks with which a thousand steps take an hour of one processor core
    'BRECQ, weights alone, 250 steps of 16 images': dict(
        algorithm=_base_.brecq,
        steps=dict(
            activations=None,
            weights=dict(num_iters=250, batch_size=16, train=dict(rounding=dict(lr=2e-2)),
                         terms=dict(rounding=dict(weight=100, relative=True))))),
}
