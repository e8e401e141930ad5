# The 256 calibration images of the embedded digits, without augmentation.
calibration_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='mmquant.DigitsDataset',
        split='calibration',
        test_mode=True,
        pipeline=[dict(type='Resize', scale=32), dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=False))
calibration_input_shape = (3, 32, 32)  # one sample, for dry runs
