"""What evaluations say beside their values."""
from mmquant.datasets.identity import without_roots
from mmquant.utils.building import differing_keys, plain


def unlike_evaluations(cfg) -> str | None:
    """What to tell where validation and test of a config read different images, or measure differently."""
    found = []
    for kind, part in (('dataloader', 'dataset'), ('evaluator', None)):
        own = [cfg.get(f'{stage}_{kind}') for stage in ('val', 'test')]
        if all(own):
            own = [plain(without_roots(x.get(part) if part else x)) for x in own]
            found += [f'{kind}{"." if part else ""}{part or ""}.{difference}' for difference in differing_keys(*own)]
    if not found:
        return None
    return (f'val_ and test_dataloader (or their evaluators) differ in {"; ".join(found[:3])}: tools/ptq.py evaluates '
            'on the first, tools/test.py on the second. To measure on images of your own, set both')


def nothing_to_find(metrics: dict) -> str | None:
    """What to tell where there are no metrics, or COCO's mean nothing as no image shows an object; None if they do."""
    if not metrics:
        return ('the evaluator returned no metrics: the model found nothing at all (usual for detectors rounded to '
                'nearest at few bits)')
    found = {key: value for key, value in metrics.items() if '_mAP' in key}
    if not found or any(value != -1 for value in found.values()):
        return None
    return (f'{", ".join(found)} are -1: the evaluation images show no object of any class, so there is nothing to '
            'find; check the annotations (ann_file), and the class names (metainfo) of val_dataloader and '
            'test_dataloader')
