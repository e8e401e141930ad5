"""The steps of an algorithm: an ordered dict by name, which configs that build on another one change in place."""
import inspect
import itertools
from collections.abc import Mapping

from mmquant.algorithms.step import Step
from mmquant.registry import STEPS
from mmquant.utils.building import ConfigError, build, check_keys, closest

PLACES = ('before', 'after')


def ordered_steps(steps, where: str = 'train_cfg.steps') -> dict[str, dict | Step]:
    """Steps by name, in the order in which they run.

    Args:
        steps (dict | list): By name. A value of None takes the step of a base config away; the key ``after`` or
            ``before`` puts one at that place, all others run in the order of the dict. In a list, names are the values
            of ``name``, else those of the classes.

    Raises:
        ConfigError: For no steps, a step without ``type`` (a name that the base config does not have), or a place
            beside a step that is not there.
    """
    if not isinstance(steps, (Mapping, list, tuple)) or not steps:
        raise ConfigError(f'{where} must be a dict of at least one step by name, or a list of steps, got {steps!r}')
    named = dict(steps) if isinstance(steps, Mapping) else _by_name(steps)
    named = {name: dict(s) if isinstance(s, Mapping) else s for name, s in named.items() if s is not None}
    valid = [name for name, s in named.items() if not isinstance(s, dict) or 'type' in s]
    for name in named:
        if name not in valid:
            raise ConfigError(f'{where}: no step {name!r} to change (a new one needs a type); {closest(name, valid)}')
    places = {name: _place(step, f'{where}.{name}', valid) for name, step in named.items()}
    return {name: named[name] for name in _placed(places, where)}


def _by_name(steps) -> dict:
    named = {}
    for step in steps:
        if isinstance(step, Mapping):
            own = step.get('name') or str(step.get('type')).split('.')[-1]
        else:
            own = getattr(step, 'name', None) or str(step)
        numbered = (f'{own}_{count}' for count in itertools.count(2))
        named[own if own not in named else next(n for n in numbered if n not in named)] = step
    return named


def _place(step, where: str, names: list[str]) -> tuple[str, str] | None:
    """Takes ``before`` or ``after`` out of a step."""
    found = [(key, step.pop(key)) for key in PLACES if isinstance(step, dict) and key in step]
    if len(found) > 1:
        raise ConfigError(f'{where} has both "before" and "after"; keep one')
    if found and found[0][1] not in names:
        raise ConfigError(f'{where}.{found[0][0]}: no step {found[0][1]!r}; {closest(found[0][1], names)}')
    return found[0] if found else None


def _placed(places: dict[str, tuple[str, str] | None], where: str) -> list[str]:
    order = [name for name, place in places.items() if place is None]
    waiting = [name for name, place in places.items() if place is not None]
    while waiting:
        name = next((n for n in waiting if places[n][1] in order), None)
        if name is None:
            raise ConfigError(f'{where}: the places of {", ".join(waiting)} refer to each other in a circle')
        key, beside = places[name]
        at = order.index(beside) + (key == 'after')
        while key == 'after' and at < len(order) and places[order[at]] == places[name]:
            at += 1  # several behind one step keep the order in which they are written
        order.insert(at, name)
        waiting.remove(name)
    return order


def build_steps(steps, where: str = 'train_cfg.steps') -> list[Step]:
    """Built steps, named as in ``steps``: so are their stages in results. ConfigError as :func:`ordered_steps`."""
    built = []
    for key, step in ordered_steps(steps, where).items():
        name = step.pop('name', None) if isinstance(step, dict) else None
        built.append(build(STEPS, step, f'{where}.{key}'))
        built[-1].name = key if isinstance(steps, Mapping) else name or built[-1].name
    return built


def listed_steps(steps) -> list[dict]:
    """Steps as records hold them: a list, each with its ``name`` (JSON with sorted keys keeps no order of a dict)."""
    return [dict(step, name=name) for name, step in ordered_steps(steps).items()]


def merged(base: Mapping, changes: Mapping) -> dict:
    """``base`` with ``changes`` in it: dicts are merged, None takes a key away."""
    result = {key: merged(value, {}) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            result[key] = merged(result[key] if isinstance(result.get(key), Mapping) else {}, value)
        else:
            result[key] = value
    return result


def tuned(steps: Mapping, num_iters: int | Mapping | None = None, batch_size: int | Mapping | None = None,
          lr: float | Mapping | None = None) -> dict:
    """Configs of steps by name with other numbers: one for all steps that take it, or a dict of step -> number.

    ``lr`` is the rate of all that a step trains; of a step it may be a dict, too: what trains -> rate.

    Raises:
        ConfigError: If no step takes a number, or for a step or a role that is not there.
    """
    for key, value in dict(num_iters=num_iters, batch_size=batch_size, lr=lr).items():
        takes = [name for name, step in steps.items() if _takes(step, key)]
        if value is None:
            continue
        if not takes:
            raise ConfigError(f'{key}: none of the steps takes it: {", ".join(steps)}')
        by_step = dict(value) if isinstance(value, Mapping) else dict.fromkeys(takes, value)
        check_keys(by_step, takes, key)
        for name, number in by_step.items():
            change = {key: number} if key != 'lr' else dict(train=_rates(steps[name]['train'], number, f'lr.{name}'))
            steps = {**steps, name: merged(steps[name], change)}
    return dict(steps)


def _takes(step, key: str) -> bool:
    """Whether the config of a step may have a key; ``lr``: whether it names what trains."""
    if not isinstance(step, Mapping) or key == 'lr':
        return isinstance(step, Mapping) and bool(step.get('train'))
    cls = step['type'] if isinstance(step.get('type'), type) else STEPS.get(str(step.get('type')))
    return cls is not None and key in inspect.signature(cls.__init__).parameters


def _rates(train: Mapping, lr, where: str) -> dict:
    rates = dict(lr) if isinstance(lr, Mapping) else dict.fromkeys(train, lr)
    check_keys(rates, train, where)
    return {role: dict(lr=rate) for role, rate in rates.items()}
