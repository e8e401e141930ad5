# 256 train images of COCO, letter-boxed to 640x640.
calibration_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=False,
    dataset=dict(
        type='mmquant.RandomSubset',
        num_samples=256,
        seed=0,
        dataset=dict(
            type='CocoDataset',
            data_root='data/coco/',
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017/'),
            test_mode=True,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='Resize', scale=(640, 640), keep_ratio=True),
                dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))),
                dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape', 'scale_factor')),
            ])),
    sampler=dict(type='DefaultSampler', shuffle=False))
calibration_input_shape = (3, 640, 640)  # one sample, for dry runs
