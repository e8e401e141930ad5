# Ranges alone, every weight and activation rounded to its nearest level: seconds. Ranges are those of BRECQ's start.
nearest = dict(
    fold=dict(type='mmquant.FoldBatchNorm'),
    insert=dict(type='mmquant.InsertQuantizers'),
    nearest_weights=dict(type='mmquant.InitWeightRange', observer=dict(type='mmquant.LpNormObserver', p=2.4)),
    nearest=dict(
        type='mmquant.InitActivationRange', observer=dict(type='mmquant.LpNormObserver', p=2.4, max_samples=2**17)))
