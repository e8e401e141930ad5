"""Packages that only the export needs: imported when they are used, with the way to get them when they are missing."""
from importlib import import_module
from types import ModuleType


def need(name: str) -> ModuleType:
    """Import ``name`` ('onnx', 'onnxruntime', 'onnx.helper', 'openvino', ...).

    Raises:
        ImportError: It is not installed; the text says how to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f'{name} is needed for the export and not installed: pip install -r requirements/export.txt '
                          f'({error})') from error
