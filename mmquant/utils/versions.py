"""Check the installed torch and OpenMMLab packages without importing them.

The originals and the maintained onedl-* forks share their import names and differ in the names of their
distributions, so a version is looked up for an import name, whichever distribution it came with.
"""
import contextlib
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from packaging.version import InvalidVersion, Version

from ..version import __version__


@dataclass(frozen=True)
class PackageRange:
    """The versions of one package that mmquant accepts."""
    module: str  # import name
    minimum: str  # the oldest version accepted; an older one raises
    below: str  # the first version beyond the bound; this and newer ones only warn
    tested: str  # the version the tests run with
    distributions: tuple[str, ...]  # that bring the module; the first one is suggested for installing
    if_missing: str  # 'raise', 'warn' or 'ignore'
    needed_for: str  # completes "is needed for ..."


PACKAGES = (
    # before 2.6, weights_only=True could be made to run code, and names of a file's classes were not told
    PackageRange('torch', '2.6.0', '3.0.0', '2.13.0', ('torch', ), 'raise', 'everything'),
    PackageRange('mmengine', '0.10.0', '1.0.0', '0.10.12', ('onedl-mmengine', 'mmengine', 'mmengine-lite'), 'raise',
                 'configs, registries and the runner'),
    PackageRange('mmcv', '2.0.0', '3.0.0', '2.3.6', ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full'), 'warn',
                 'OpenMMLab models and data pipelines'),
    PackageRange('mmpretrain', '1.0.0', '2.0.0', '1.3.6', ('onedl-mmpretrain', 'mmpretrain'), 'warn',
                 'the classifiers and datasets that the configs name'),
    PackageRange('mmdet', '3.0.0', '4.0.0', '3.5.1', ('onedl-mmdetection', 'mmdet'), 'ignore', 'detectors'),
    # mmpretrain 1.3.6 imports it where it is there, and cannot be imported beside 5.17 or 5.24: a base class is None
    PackageRange('transformers', '0', '5.0.0', '4.57.6', ('transformers', ), 'ignore', 'models of text and images'),
)


def installed_distributions(names: Sequence[str]) -> list[str]:
    """Those of the distributions ``names`` that are installed, as ``'name version'``."""
    found = []
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f'{name} {metadata.version(name)}')
    return found


def installed_version(module: str, distributions: Sequence[str] = ()) -> str | None:
    """The version of an importable package, without importing it.

    Looked for in this order: ``__version__`` if the package is imported already, a literal in its ``version.py``, the
    metadata of the ``distributions`` that may have brought it. ``''`` if the package is there but tells no version;
    ``None`` if it is not there.
    """
    if module in sys.modules:
        version = getattr(sys.modules[module], '__version__', None)
        if version is not None:
            return str(version)
    spec = util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    version_file = Path(spec.origin).with_name('version.py')
    if version_file.is_file():
        literal = re.search(r'^__version__\s*=\s*[\'"]([^\'"]+)[\'"]', version_file.read_text(encoding='utf-8'), re.M)
        if literal:
            return literal.group(1)
    found = installed_distributions(distributions)
    return found[0].split()[1] if found else ''


def check_package(package: PackageRange) -> None:
    """Check one package against its range.

    Raises:
        ImportError: It is older than ``package.minimum``, or missing and ``package.if_missing`` is ``'raise'``.
    """
    version = installed_version(package.module, package.distributions)
    found = installed_distributions(package.distributions)
    install = f"pip install '{package.distributions[0]}=={package.tested}'"
    names = [entry.split()[0] for entry in found]
    if set(names) - {package.distributions[0]}:  # pip would leave the original beside its fork
        install = f'pip uninstall {" ".join(names)}; {install}'
    if version is None:
        text = f'{package.module} is not installed; it is needed for {package.needed_for}. Install it, e.g. {install}'
        if package.if_missing == 'raise':
            raise ImportError(text)
        if package.if_missing == 'warn':
            warnings.warn(text, stacklevel=2)
        return
    if len(found) > 1:
        warnings.warn(f'{" and ".join(found)} are installed together; they overwrite each other\'s files in the folder '
                      f'{package.module}. Keep one, e.g. {install}', stacklevel=2)
    try:
        number = Version(version)
    except InvalidVersion:  # a build that names no usable version; nothing to compare
        return
    if number < Version(package.minimum):
        raise ImportError(f'mmquant needs {package.module}>={package.minimum}, but found {version}. '
                          f'Upgrade it, e.g. {install}')
    if number >= Version(package.below):
        warnings.warn(f'{package.module} {version} is newer than mmquant knows (tested with {package.tested}, expected '
                      f'<{package.below}). It may work; if it does not, try {install}', stacklevel=2)


def check_versions(packages: Sequence[PackageRange] = PACKAGES) -> None:
    """Check torch and the OpenMMLab packages; see :func:`check_package`."""
    for package in packages:
        check_package(package)


def found_versions() -> dict:
    """Versions of Python and of the packages in :data:`PACKAGES` that are installed, by import name."""
    versions = {p.module: installed_version(p.module, p.distributions) for p in PACKAGES}
    return {'python': '.'.join(map(str, sys.version_info[:3])), 'mmquant': __version__,
            **{k: v for k, v in versions.items() if v}}
