# The 128 calibration scenes of embedded digits, without augmentation; one image a batch, since sizes differ.
calibration_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='mmquant.DigitsDetDataset',
        split='calibration',
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape')),
        ]),
    sampler=dict(type='DefaultSampler', shuffle=False))
calibration_input_shape = (3, 128, 128)  # one sample, for dry runs
