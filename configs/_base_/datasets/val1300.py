# 1300 images of the ImageNet validation set, already of 227x227 pixels. Not the full set: name it in every result.
data_preprocessor = dict(
    num_classes=1000,
    mean=[127.5, 127.5, 127.5],
    std=[127.5, 127.5, 127.5],
    to_rgb=True)

val_dataloader = dict(
    batch_size=50,
    num_workers=2,
    persistent_workers=True,
    dataset=dict(
        type='CustomDataset',
        data_root='{{$MMQUANT_REAL_DATA:data}}',
        ann_file='imagenet/val1300.txt',
        data_prefix='imagenet/val1300',
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='CenterCrop', crop_size=224),
            dict(type='PackInputs'),
        ]),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, 5))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
