# 256 train images of COCO in the test pipeline, one a batch, since sizes differ: the protocol of QDrop and BRECQ.
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
                dict(type='Resize', scale=(1333, 800), keep_ratio=True),
                dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape', 'scale_factor')),
            ])),
    sampler=dict(type='DefaultSampler', shuffle=False))
calibration_input_shape = (3, 800, 1344)  # one sample, for dry runs
