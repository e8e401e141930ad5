"""How each role trains: its rate, how the rate falls, and by which optimizer."""
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import mmengine.optim  # noqa: F401  registers torch's optimizers
import torch

from mmquant.registry import OPTIMIZERS
from mmquant.utils.building import ConfigError, build, check_keys, check_types, closest

# Factor of the rate at `progress` in [0, 1).
SCHEDULES = {'constant': lambda progress: 1.0, 'linear': lambda progress: 1 - progress,
             'cosine': lambda progress: 0.5 * (1 + math.cos(math.pi * progress))}


@dataclass(frozen=True)
class Training:
    """How the tensors of one role train."""
    lr: float  # rate at the start; 0: the role stays as it is
    schedule: str = 'constant'  # or 'linear' or 'cosine', which fall to 0
    optimizer: dict = field(default_factory=lambda: {'type': 'Adam'})  # its config, without its rate
    # Tensors of quantizers with more bits stay as they are: a step of 8 bits is 16 times smaller than one of 4, and a
    # rate that suits this one overshoots that one. None: no limit.
    max_bits: int | None = None

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ConfigError(f'lr must be at least 0, got {self.lr!r}')
        if self.schedule not in SCHEDULES:
            raise ConfigError(f'unknown schedule {self.schedule!r}; {closest(self.schedule, SCHEDULES)}')
        if self.max_bits is not None and self.max_bits < 2:
            raise ConfigError(f'max_bits must be None or at least 2, got {self.max_bits!r}')
        make_optimizer(self.optimizer, [dict(params=[torch.zeros(1)], lr=self.lr)])

    def rate(self, progress: float) -> float:
        """Rate at ``progress`` (0..1)."""
        return self.lr * SCHEDULES[self.schedule](progress)


def trainings(cfg: Mapping | None, where: str) -> dict[str, Training]:
    """How each role trains, from ``dict(role=dict(lr=..., ...))``; what is not named stays as it is.

    ConfigError for anything else, naming the role; also if nothing would train.
    """
    if not isinstance(cfg, Mapping) or not all(v is None or isinstance(v, Mapping) for v in cfg.values()):
        raise ConfigError(f'{where} must name each role that trains, with its rate, such as '
                          f'dict(rounding=dict(lr=1e-3)), got {cfg!r}')
    found = {}
    for role, settings in ((r, s) for r, s in cfg.items() if s is not None):
        place = f'{where}.{role}'
        check_keys(settings, Training.__dataclass_fields__, place)
        check_types(settings, Training, place)
        if 'lr' not in settings:
            raise ConfigError(f"{place}: the key 'lr' is required")
        try:
            found[role] = Training(**settings)
        except ConfigError as error:
            raise ConfigError(f'{place}: {error}') from error
    if not any(t.lr for t in found.values()):
        raise ConfigError(f'{where} must give at least one role a positive lr, got {dict(cfg)!r}')
    return found


@dataclass(frozen=True)
class ParamGroup:
    """Leaf tensors that train alike; they require gradients."""
    params: list
    training: Training


def make_optimizer(cfg: Mapping, groups: list[dict]) -> torch.optim.Optimizer:
    """An optimizer of ``params`` and ``lr`` of each group, from a config: any one of torch, or of the registry.

    Fused where it can be; on a GPU its rates are tensors if it reads them, for captured steps.
    """
    device = groups[0]['params'][0].device
    cls = OPTIMIZERS.get(cfg['type']) if isinstance(cfg.get('type'), str) else cfg.get('type')
    known = getattr(cls.__init__, '__code__', None).co_varnames if cls else ()
    speed = {}
    if 'fused' in known and device.type in ('cpu', 'cuda'):
        speed['fused'] = True
    if device.type == 'cuda' and 'capturable' in known:
        speed['capturable'] = True
        groups = [dict(g, lr=torch.tensor(g['lr'], device=device)) for g in groups]
    return build(OPTIMIZERS, dict(cfg), 'optimizer', params=groups, lr=groups[0]['lr'], **speed)


def make_optimizers(groups: Sequence[ParamGroup]) -> list[torch.optim.Optimizer]:
    """Optimizers of all groups; groups of one config share one."""
    alike: dict[str, list[ParamGroup]] = {}
    for group in groups:
        alike.setdefault(repr(sorted(group.training.optimizer.items())), []).append(group)
    return [make_optimizer(members[0].training.optimizer,
                           [dict(params=g.params, lr=g.training.lr, training=g.training) for g in members])
            for members in alike.values()]


def set_rates(optimizers: Sequence[torch.optim.Optimizer], progress: float) -> None:
    """Move all rates to where they belong at ``progress`` (0..1)."""
    for group in _changing(optimizers):
        rate = group['training'].rate(progress)
        if isinstance(group['lr'], torch.Tensor):
            group['lr'].fill_(rate)
        else:
            group['lr'] = rate


def can_be_captured(optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Whether every rate is a tensor that a captured step reads, or never changes."""
    return all(isinstance(group['lr'], torch.Tensor) for group in _changing(optimizers))


def _changing(optimizers: Sequence[torch.optim.Optimizer]) -> list[dict]:
    """Groups whose rate changes."""
    return [group for x in optimizers for group in x.param_groups if group['training'].schedule != 'constant']
