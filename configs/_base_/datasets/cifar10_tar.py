# The 10 000 test images of CIFAR-10 as JPEG files in class folders of an uncompressed tar archive.
data_preprocessor = dict(
    num_classes=10,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)

val_dataloader = dict(
    batch_size=100,
    num_workers=2,
    persistent_workers=True,
    dataset=dict(
        type='mmquant.TarImageDataset',
        data_root='{{$MMQUANT_REAL_DATA:data}}',
        tar_file='cifar10/test_jpg.tar',
        test_mode=True,
        pipeline=[dict(type='mmquant.LoadImageFromTar'), dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, 5))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
