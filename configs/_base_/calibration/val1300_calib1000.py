# 1000 train images of ImageNet, one a class, short side 256; calibrates what val1300 evaluates. No augmentation.
calibration_dataloader = dict(
    batch_size=50,
    num_workers=2,
    persistent_workers=False,
    dataset=dict(
        type='mmquant.RandomSubset',
        num_samples=1000,
        seed=0,
        dataset=dict(
            type='CustomDataset',
            data_root='{{$MMQUANT_REAL_DATA:data}}',
            ann_file='imagenet/calib1000.txt',
            data_prefix='imagenet/calib1000',
            test_mode=True,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='ResizeEdge', scale=256, edge='short'),
                dict(type='CenterCrop', crop_size=224),
                dict(type='PackInputs'),
            ])),
    sampler=dict(type='DefaultSampler', shuffle=False))
calibration_input_shape = (3, 224, 224)  # one sample, for dry runs
