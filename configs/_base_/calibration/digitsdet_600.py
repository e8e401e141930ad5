# All 600 scenes of embedded digits that the float detectors were trained on, without augmentation; one image a batch,
# since sizes differ.
_base_ = ['./digitsdet_128.py']

calibration_dataloader = dict(dataset=dict(split='train'))
