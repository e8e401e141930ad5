"""What metrics say beside their values."""

def nothing_to_find(metrics: dict) -> str | None:
    """What to tell where COCO's metrics mean nothing, since no evaluation image shows an object; None if they do."""
    found = {key: value for key, value in metrics.items() if '_mAP' in key}
    if not found or any(value != -1 for value in found.values()):
        return None
    return (f'{", ".join(found)} are -1: the evaluation images show no object of any class, so there is nothing to '
            'find; check the annotations (ann_file), and the class names (metainfo) of val_dataloader and '
            'test_dataloader')
