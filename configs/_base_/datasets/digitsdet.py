# Scenes of embedded digits to detect, 128x128, 96x128 and 128x96 pixels; made below data_root on first use.
data_root = 'data/digitsdet'

train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='mmquant.DigitsDetDataset',
        split='train',
        data_root=data_root,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PhotoMetricDistortion'),
            dict(
                type='RandomAffine',
                max_rotate_degree=5.,
                max_translate_ratio=0.1,
                scaling_ratio_range=(0.8, 1.25),
                max_shear_degree=2.,
                border_val=(114, 114, 114)),
            dict(type='PackDetInputs'),
        ]),
    sampler=dict(type='DefaultSampler', shuffle=True))

val_dataloader = dict(
    batch_size=1,  # the two shapes of images would be padded to one another
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='mmquant.DigitsDetDataset',
        split='test',
        data_root=data_root,
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(128, 128), keep_ratio=True),  # changes nothing, but says so to the metric
            dict(type='LoadAnnotations', with_bbox=True),
            dict(
                type='PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
        ]),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='CocoMetric', ann_file=f'{data_root}/annotations/test.json', metric='bbox')

test_dataloader = val_dataloader
test_evaluator = val_evaluator
