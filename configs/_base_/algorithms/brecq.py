# BRECQ (arXiv 2102.05426): weights block by block, then step sizes; settings of the authors' code.
brecq = [
    dict(type='mmquant.FoldBatchNorm'),
    dict(type='mmquant.InsertQuantizers'),
    dict(type='mmquant.InitWeightRange', observer=dict(type='mmquant.LpNormObserver', p=2.4)),
    dict(type='mmquant.InitActivationRange', observer=dict(type='mmquant.LpNormObserver', p=2.4, max_samples=2**17),
         name='nearest'),
    dict(
        type='mmquant.Reconstruction',
        target='weight',
        unit='block',
        num_iters=20000,
        lr=1e-3,
        rounding=dict(type='mmquant.AdaRound'),
        regularizer=dict(weight=0.01, beta_start=20, beta_end=2, warmup=0.2),
        loss=dict(type='mmquant.LpLoss', p=2)),
    dict(type='mmquant.InitActivationRange', observer=dict(type='mmquant.LpNormObserver', p=2.4, max_samples=2**17)),
    dict(
        type='mmquant.Reconstruction',
        target='activation',
        unit='block',
        num_iters=5000,
        lr=4e-4,
        inputs='float',
        loss=dict(type='mmquant.LpLoss', p=2.4)),
]
