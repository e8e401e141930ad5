# 128 train images of COCO, letter-boxed to 416x416; calibrates what val2017-328 evaluates.
calibration_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=False,
    dataset=dict(
        type='mmpretrain.CustomDataset',
        data_root='{{$MMQUANT_REAL_DATA:data}}',
        data_prefix='coco/calib_train2017',
        with_label=False,
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(416, 416), keep_ratio=True),
            dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))),
            dict(type='PackDetInputs', meta_keys=('ori_shape', 'img_shape', 'scale_factor')),
        ]),
    sampler=dict(type='DefaultSampler', shuffle=False))
calibration_input_shape = (3, 416, 416)  # one sample, for dry runs
