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
        unit='block',
        quantize=['weights', 'activations'],
        num_iters=500,
        batch_size=64,
        rounding=dict(type='mmquant.StraightThrough'),
        train=dict(
            weight=dict(lr=1e-5, schedule='cosine'),
            weight_scale=dict(lr=1e-5, schedule='cosine'),
            affine=dict(lr=1e-3, schedule='cosine'),
            bias=dict(lr=1e-3, schedule='cosine'),
            activation_scale=dict(lr=1e-4, schedule='cosine')),
        terms=dict(
            unit=dict(type='mmquant.UnitLoss', p=1),
            tail=dict(type='mmquant.TailLoss', end='stage', p=1, weight=1.0)),
        hooks=dict(stem=None)),
    folded=dict(type='mmquant.FoldOutputAffine'))
