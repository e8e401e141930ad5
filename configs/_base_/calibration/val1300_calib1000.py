# 1000 train images of ImageNet, one a class, short side 256; calibrates what val1300 evaluates. No augmentation.
_base_ = './imagenet_512.py'

calibration_dataloader = dict(
    batch_size=50,
    num_workers=2,
    dataset=dict(
        num_samples=1000,
        dataset=dict(
            _delete_=True,
            type='CustomDataset',
            data_root='{{$MMQUANT_REAL_DATA:data}}',
            ann_file='imagenet/calib1000.txt',
            data_prefix='imagenet/calib1000',
            test_mode=True,
            pipeline=_base_.calibration_dataloader.dataset.dataset.pipeline)))
