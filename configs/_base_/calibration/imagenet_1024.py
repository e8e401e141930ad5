# 1024 images drawn from the train split of ImageNet with the train pipeline, as in the official code of BRECQ.
calibration_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=False,
    dataset=dict(
        type='mmquant.RandomSubset',
        num_samples=1024,
        seed=0,
        dataset=dict(
            type='ImageNet',
            data_root='data/imagenet',
            split='train',
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='RandomResizedCrop', scale=224),
                dict(type='RandomFlip', prob=0.5, direction='horizontal'),
                dict(type='PackInputs'),
            ])),
    sampler=dict(type='DefaultSampler', shuffle=False))
calibration_input_shape = (3, 224, 224)  # one sample, for dry runs
