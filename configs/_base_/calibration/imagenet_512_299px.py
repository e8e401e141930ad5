# 512 images drawn from the train split of ImageNet, with the test pipeline of Inception-V3: no augmentation.
calibration_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=False,
    dataset=dict(
        type='mmquant.RandomSubset',
        num_samples=512,
        seed=0,
        dataset=dict(
            type='ImageNet',
            data_root='data/imagenet',
            split='train',
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='ResizeEdge', scale=342, edge='short'),
                dict(type='CenterCrop', crop_size=299),
                dict(type='PackInputs'),
            ])),
    sampler=dict(type='DefaultSampler', shuffle=False))
calibration_input_shape = (3, 299, 299)  # one sample, for dry runs
