# Handwritten digits embedded in scikit-learn, resized from 8x8 to 32x32.
data_preprocessor = dict(
    num_classes=10,
    # mean and standard deviation of the train split; three equal channels
    mean=[77.7, 77.7, 77.7],
    std=[95.8, 95.8, 95.8],
    to_rgb=False)

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='mmquant.DigitsDataset',
        split='train',
        pipeline=[
            dict(type='Resize', scale=32),
            dict(type='Rotate', angle=12., prob=0.5, pad_val=0, interpolation='bilinear'),
            dict(type='Shear', magnitude=0.2, prob=0.5, pad_val=0, direction='horizontal', interpolation='bilinear'),
            # shift, size and proportions
            dict(type='RandomCrop', crop_size=36, padding=4),
            dict(type='RandomResizedCrop', scale=32, crop_ratio_range=(0.6, 1.0), aspect_ratio_range=(0.85, 1.18)),
            dict(type='PackInputs'),
        ]),
    sampler=dict(type='DefaultSampler', shuffle=True))

val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='mmquant.DigitsDataset',
        split='test',
        test_mode=True,
        pipeline=[dict(type='Resize', scale=32), dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, 5))

test_dataloader = val_dataloader
test_evaluator = val_evaluator
