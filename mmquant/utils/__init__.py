"""Helpers that import nothing heavy."""
from .versions import check_versions, installed_version

__all__ = ['check_versions', 'installed_version']
