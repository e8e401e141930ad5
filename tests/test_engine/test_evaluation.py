from mmquant.engine.evaluation import nothing_to_find


def test_metrics_that_mean_nothing():
    assert 'coco/bbox_mAP, coco/bbox_mAP_50 are -1' in nothing_to_find({'coco/bbox_mAP': -1., 'coco/bbox_mAP_50': -1.})
    assert 'found nothing at all' in nothing_to_find({})
    for metrics in ({'accuracy/top1': -1.}, {'coco/bbox_mAP': 0.3, 'coco/bbox_mAP_s': -1.}):
        assert nothing_to_find(metrics) is None
