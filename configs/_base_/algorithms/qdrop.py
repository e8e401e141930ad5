# QDrop (arXiv 2203.05740): roundings and activation scales together, while half of all quantized activations, drawn
# anew in each step, stay float. Settings of the authors' code; ranges of activations are those of the float network.
qdrop = dict(
    fold=dict(type='mmquant.FoldBatchNorm'),
    insert=dict(type='mmquant.InsertQuantizers'),
    nearest_weights=dict(type='mmquant.InitWeightRange', observer=dict(type='mmquant.LpNormObserver', p=2.4)),
    nearest=dict(
        type='mmquant.InitActivationRange',
        observer=dict(type='mmquant.LpNormObserver', p=2.4, max_samples=2**17),
        num_images=256,
        statistics='float'),
    joint=dict(
        type='mmquant.Reconstruction',
        unit='block',
        quantize=['weights', 'activations'],
        num_iters=20000,
        batch_size=32,
        inputs=dict(type='mmquant.ElementMix', quant_prob=0.5, inside=True),
        rounding=dict(type='mmquant.AdaRound'),
        train=dict(rounding=dict(lr=1e-3), activation_scale=dict(lr=4e-5, schedule='cosine')),
        terms=dict(
            unit=dict(type='mmquant.UnitLoss', p=2),
            rounding=dict(type='mmquant.RoundingRegularizer', weight=0.01, beta_start=20, beta_end=2, warmup=0.2))))
