from mmquant.engine.sources.loader_images import LoaderImages
from mmquant.engine.sources.source import Source

__all__ = ['LoaderImages', 'Source']
