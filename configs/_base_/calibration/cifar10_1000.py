# 1000 train images of CIFAR-10 from a tar archive, drawn in random order, without augmentation.
calibration_dataloader = dict(
    batch_size=50,
    num_workers=2,
    persistent_workers=False,
    dataset=dict(
        type='mmquant.RandomSubset',
        num_samples=1000,
        seed=0,
        dataset=dict(
            type='mmquant.TarImageDataset',
            data_root='{{$MMQUANT_REAL_DATA:data}}',
            tar_file='cifar10/train_calib1000_jpg.tar',
            test_mode=True,
            pipeline=[dict(type='mmquant.LoadImageFromTar'), dict(type='PackInputs')])),
    sampler=dict(type='DefaultSampler', shuffle=False))
calibration_input_shape = (3, 32, 32)  # one sample, for dry runs
