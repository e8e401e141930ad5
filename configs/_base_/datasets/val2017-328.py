# 328 images of COCO val2017, letter-boxed to 416x416 as YOLOX tests. Not the full set: name it in every result.
coco_root = '{{$MMQUANT_REAL_DATA:data}}/coco'

val2017_328_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    dataset=dict(
        type='CocoDataset',
        data_root=coco_root,
        ann_file='val2017_subset/instances_val_subset.json',
        data_prefix=dict(img='val2017_subset/images/'),
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(416, 416), keep_ratio=True),
            dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
        ]),
    sampler=dict(type='DefaultSampler', shuffle=False))
val2017_328_evaluator = dict(
    type='CocoMetric',
    ann_file=f'{coco_root}/val2017_subset/instances_val_subset.json',
    metric='bbox')
