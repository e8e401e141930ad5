import cv2
import numpy as np
from landscape_pictures import plot_hessian, plot_norms, plot_surface
from matplotlib import pyplot


def test_pictures_are_written(tmp_path):
    axis = np.linspace(-0.5, 0.5, 5)
    losses = axis[:, None]**2 + axis**2
    losses[0, 0] = np.inf
    paths = [
        plot_norms(str(tmp_path / 'a.png'), [2, 3, 4], [1.0, 0.5, 1.2], (0.6, -3.5, 5.6), 2.9, 'x'),
        plot_norms(str(tmp_path / 'b.png'), [2, 3], [1.0, 0.5], None, None, 'x'),
        plot_surface(str(tmp_path / 'c.png'), axis, losses, ('first', 'second'), 'x'),
        plot_hessian(str(tmp_path / 'd.png'), np.eye(3), ('p', 'q', 'r'), 'x'),
    ]
    for path in paths:
        picture = cv2.imread(path)
        assert min(picture.shape[:2]) > 200 and picture.std() > 5
    assert not pyplot.get_fignums()  # nothing is left open
