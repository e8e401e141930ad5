from mmquant.apis.prepare import smaller


def test_large_images_of_dry_runs_become_smaller():
    """By about their proportions, in whole cells of 32; others stay."""
    assert smaller((3, 800, 1344)) == (3, 192, 320)
    assert smaller((3, 224, 224)) == (3, 224, 224) and smaller((2048, 512)) == (2048, 512)
