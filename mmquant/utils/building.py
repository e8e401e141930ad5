"""Building from configs with errors that name the closest valid key or type."""
import difflib
import inspect
import json
import types
import typing

from mmengine.registry import Registry


class ConfigError(ValueError):
    """A config value that cannot be used; the text says where, what was seen and what to write instead."""


def closest(word: str, choices) -> str:
    """Text that proposes the closest valid word, or lists all."""
    choices = sorted(str(c) for c in choices)
    near = difflib.get_close_matches(str(word), choices, 1, 0.5)
    return f'did you mean {near[0]!r}?' if near else f'valid ones: {", ".join(choices)}'


def check_keys(given, valid, where: str) -> None:
    """Raise :class:`ConfigError` for the first key that is not valid."""
    for key in given:
        if key not in valid:
            raise ConfigError(f'{where}: unknown key {key!r}; {closest(key, valid)}')


def check_types(args: dict, annotated, where: str) -> None:
    """Raise :class:`ConfigError` for the first value that is not of the type annotated in a function or dataclass."""
    hints = typing.get_type_hints(annotated)
    for key, value in args.items():
        if key in hints and not _fits(value, hints[key]):
            expected = getattr(hints[key], '__name__', None) if isinstance(hints[key], type) else None
            raise ConfigError(f'{where}: {key} must be {expected or hints[key]}, got {value!r}')


def _fits(value, hint) -> bool:
    """Whether a config's value may stand for a hint: whole numbers are floats, tuples are lists."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, h) for h in typing.get_args(hint))
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, (list, tuple) if kind in (list, tuple) else kind)


def plain(cfg):
    """A config as dicts, lists, strings and numbers only; classes and other objects become their text."""
    return json.loads(json.dumps(cfg, default=str))


def differing_keys(a, b, prefix: str = '') -> list[str]:
    """Dotted paths, with both values, where two nested structures of plain values differ; steps go by their names."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [(k, a.get(k), b.get(k)) for k in sorted({*a, *b})]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        named = all(isinstance(x, dict) and isinstance(y, dict) and 'name' in x and x['name'] == y.get('name')
                    for x, y in zip(a, b))
        keys = [(x['name'] if named else i, x, y) for i, (x, y) in enumerate(zip(a, b))]
    else:
        return [] if a == b else [f'{prefix}: {_short(a)} instead of {_short(b)}']
    return [d for k, x, y in keys for d in differing_keys(x, y, f'{prefix}.{k}' if prefix else str(k))]


def _short(value) -> str:
    text = f'a list of {len(value)}' if isinstance(value, list) else repr(value)
    return text if len(text) <= 60 else text[:57] + '...'


def build(registry: Registry, cfg, where: str, **extra):
    """Build ``cfg``, a dict with ``type``, from one of mmquant's registries; an object is returned as it is.

    ``where`` is the place in the config, for messages: ``'quantizer.weight'``; ``extra`` what the config does not give.

    Raises:
        ConfigError: No dict, no or unknown ``type``, an unknown or missing key, or a value that the class refuses.
    """
    if not isinstance(cfg, dict):
        if isinstance(cfg, (str, int, float, list, tuple, type(None))):
            raise ConfigError(f'{where}: expected dict(type=...), got {cfg!r}')
        return cfg
    if 'type' not in cfg:
        raise ConfigError(f'{where}: the key "type" is missing in {dict(cfg)}')
    if not isinstance(cfg['type'], (str, type)):
        raise ConfigError(f'{where}: type must be a name such as "mmquant.Name", got {cfg["type"]!r}')
    cls = cfg['type'] if isinstance(cfg['type'], type) else registry.get(cfg['type'])
    if cls is None:
        registry.import_from_location()
        names = [f'mmquant.{n}' for n in registry.module_dict]
        raise ConfigError(f'{where}: unknown type {cfg["type"]!r}; {closest(cfg["type"], names)}')
    args = {**extra, **{k: v for k, v in cfg.items() if k != 'type'}}
    parameters = inspect.signature(cls.__init__).parameters
    valid = [p for p in parameters if p not in ('self', 'args', 'kwargs')]
    if 'kwargs' not in parameters:
        check_keys(args, valid, f'{where} ({cls.__name__})')
    missing = [n for n, p in parameters.items() if n in valid and p.default is p.empty and n not in args]
    if missing:
        raise ConfigError(f'{where} ({cls.__name__}): the key {missing[0]!r} is required')
    check_types(args, cls.__init__, f'{where} ({cls.__name__})')
    try:
        return cls(**args)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f'{where} ({cls.__name__}): {error}') from error
