"""What a run says about roundings that were still between two levels when they were decided."""

UNDECIDED = 0.05  # share of a unit's roundings that is told of


def undecided_text(records: list[dict]) -> str:
    """The worst unit of each step, and what to do, in one line; empty where few roundings were undecided."""
    units = [r for r in records if r.get('undecided', 0) > UNDECIDED]
    if not units:
        return ''
    return (f'Undecided roundings: {"; ".join(_step_text(units, step) for step in dict.fromkeys(map(_step, units)))}. '
            'They went to the nearer level when the steps ended: give more steps (num_iters), a higher rate '
            '(train.rounding.lr), or relative=True to the RoundingRegularizer')


def _step(record: dict) -> str:
    return record.get('step', 'steps')


def _step_text(units: list[dict], step: str) -> str:
    own = [u for u in units if _step(u) == step]
    worst = max(own, key=lambda u: u['undecided'])
    others = len(own) - 1
    rest = f' (and more than {UNDECIDED:.0%} in {others} other unit{"s" * (others > 1)})' if others else ''
    return f'{step}: {worst["undecided"]:.0%} of {worst["unit"] or "the net"}{rest}'
