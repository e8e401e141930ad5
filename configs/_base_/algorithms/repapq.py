# RepAPQ (arXiv 2402.16121) for 8 bits: branches merged, an affine after each merged convolution, absolute errors for
# activation ranges and outputs, a second loss at the end of the stage. Steps, rates and weights are this project's.
# Weights keep their full range: a search by the absolute error would clip the taps of the identity branch away.
repapq = dict(
    merge=dict(type='mmquant.Reparameterize'),
    fold=dict(type='mmquant.FoldBatchNorm'),
    insert=dict(type='mmquant.InsertQuantizers'),
    affines=dict(type='mmquant.InsertOutputAffine', layers='merged', init='identity'),
    nearest_weights=dict(type='mmquant.InitWeightRange', observer=dict(type='mmquant.MinMaxObserver')),
    nearest=dict(
        type='mmquant.InitActivationRange', observer=dict(type='mmquant.LpNormObserver', p=1, max_samples=2**17)),
    joint=dict(
        type='mmquant.Reconstruction',
        target='joint',
        unit='block',
        num_iters=500,
        batch_size=64,
        rounding=dict(type='mmquant.StraightThrough'),
        lr=dict(weight=1e-5, weight_scale=1e-5, affine=1e-3, bias=1e-3, activation_scale=1e-4),
        loss=dict(type='mmquant.LpLoss', p=1),
        tail=dict(end='stage', unit_weight=1.0, weight=1.0),
        skip_first=False),
    folded=dict(type='mmquant.FoldOutputAffine'))
