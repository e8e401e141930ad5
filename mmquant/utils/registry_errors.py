"""What mmengine raises for an unknown type or key of a config, told with the closest valid one."""
import difflib
import inspect
import re
import reprlib
import traceback
from collections.abc import Iterator

import mmengine.registry
from mmengine.registry import Registry

_UNKNOWN_TYPE = re.compile(r'(\S+) is not in the (?:\S+::)?(\S+) registry')
_UNKNOWN_KEY = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")

OPERATORS = ('mmcv was installed without its compiled operators, which detectors need (boxes, regions, deformable '
             'convolutions). Build them beside the torch that is there, in 10 to 20 minutes: "pip install ninja" and '
             '"pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps onedl-mmcv" (or mmcv, '
             'whichever is installed)')


def explain(error: Exception) -> str | None:
    """Text for the user if ``error`` comes from building a config with an unknown type or key, or from missing
    operators of mmcv, else None."""
    text, cause = str(error), error
    while cause is not None:
        if isinstance(cause, ImportError) and 'mmcv._ext' in str(cause):
            return OPERATORS
        cause = cause.__cause__
    if isinstance(error, KeyError) and (found := _UNKNOWN_TYPE.search(text.strip('"\''))):
        name, kind = found.groups()
        return f'unknown type {name!r} in the config (kind: {kind}); {_near(name, _type_names(kind))}'
    if isinstance(error, TypeError) and (found := _UNKNOWN_KEY.search(text)):
        cls, key = found.groups()
        return f'unknown key {key!r} for {cls} in the config; {_near(key, _keys(cls))}'
    return None


def origin(error: BaseException) -> str:
    """Where an error came up: the innermost config that was being built, else file and line."""
    place, built = 'at an unknown place', None
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        place = f'in {"/".join(code.co_filename.split("/")[-3:])}, line {line}'
        if code.co_name == 'build_from_cfg' and isinstance(frame.f_locals.get('cfg'), dict):
            built = frame.f_locals['cfg']
    if built is None:
        return place
    return f'while building dict({", ".join(f"{k}={reprlib.repr(v)}" for k, v in built.items())}), {place}'


def _near(word: str, choices: set[str]) -> str:
    scoped = sorted(c for c in choices if c != word and c.rpartition('.')[2] == word)
    if scoped:  # registered, but not where the default scope of the config looks
        return f'did you mean {" or ".join(map(repr, scoped))}?'
    near = difflib.get_close_matches(word, sorted(choices), 1, 0.5)
    return f'did you mean {near[0]!r}?' if near else 'there is nothing of a similar name'


def _registries() -> Iterator[Registry]:
    stack = [x for x in vars(mmengine.registry).values() if isinstance(x, Registry)]
    while stack:
        registry = stack.pop()
        yield registry
        stack += registry.children.values()


def _type_names(kind: str) -> set[str]:
    """Names of the registered types of a kind, bare and with their prefix."""
    return {name for registry in _registries() if registry.name == kind
            for n in registry.module_dict for name in (n, f'{registry.scope}.{n}')}


def _keys(class_name: str) -> set[str]:
    """Arguments of the registered classes of a name, and of their bases."""
    named = [cls for registry in _registries() for cls in registry.module_dict.values()
             if inspect.isclass(cls) and cls.__name__ == class_name]
    found = {p for cls in named for base in cls.__mro__[:-1] for p in inspect.signature(base.__init__).parameters}
    return found - {'self', 'args', 'kwargs'}
