# LAPQ (arXiv 1911.07190): layer-wise optima for several norms, then all clips at once by the network's loss.
lapq = [
    dict(type='mmquant.FoldBatchNorm'),
    dict(type='mmquant.InsertQuantizers'),
    dict(
        type='mmquant.NormSweep',
        norms=(1.5, 2, 2.5, 3, 3.5, 4, 5),
        num_images=512,
        objective=dict(type='mmquant.OutputKL')),
    dict(
        type='mmquant.JointSearch',
        num_images=512,
        objective=dict(type='mmquant.OutputKL'),
        searcher=dict(type='mmquant.DescentAndPolish', num_steps=200, batch_size=32, lr=0.01, num_sweeps=2)),
]
