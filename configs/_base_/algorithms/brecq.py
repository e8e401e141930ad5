# BRECQ (arXiv 2102.05426): weights block by block, then step sizes; settings of the authors' code.
brecq = dict(
    fold=dict(type='mmquant.FoldBatchNorm'),
    insert=dict(type='mmquant.InsertQuantizers'),
    nearest_weights=dict(type='mmquant.InitWeightRange', observer=dict(type='mmquant.LpNormObserver', p=2.4)),
    nearest=dict(
        type='mmquant.InitActivationRange', observer=dict(type='mmquant.LpNormObserver', p=2.4, max_samples=2**17)),
    weights=dict(
        type='mmquant.Reconstruction',
        unit='block',
        quantize=['weights'],
        num_iters=20000,
        rounding=dict(type='mmquant.AdaRound'),
        train=dict(rounding=dict(lr=1e-3)),
        terms=dict(
            unit=dict(type='mmquant.UnitLoss', p=2),
            rounding=dict(type='mmquant.RoundingRegularizer', weight=0.01, beta_start=20, beta_end=2, warmup=0.2))),
    # Learned roundings change what flows through the network, so ranges of activations are searched once more.
    activation_ranges=dict(
        type='mmquant.InitActivationRange', observer=dict(type='mmquant.LpNormObserver', p=2.4, max_samples=2**17)),
    activations=dict(
        type='mmquant.Reconstruction',
        unit='block',
        quantize=['weights', 'activations'],
        num_iters=5000,
        inputs='float',
        train=dict(activation_scale=dict(lr=4e-4, schedule='cosine')),
        terms=dict(unit=dict(type='mmquant.UnitLoss', p=2.4)),
        hooks=dict(keep_best=dict(type='mmquant.KeepBest', every=0.25))))
