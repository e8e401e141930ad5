"""Tables of a config folder's README.md and its metafile.yml, made from published records and from nothing else.

Names come from ``configs/zoo.yml``; bits and float weights from the configs; every number from a record.
"""
from __future__ import annotations

import ast
import os.path as osp
import re
from dataclasses import dataclass
from glob import glob
from statistics import mean

import yaml
from mmengine.config import Config

from mmquant.utils.building import ConfigError, closest, plain
from mmquant.utils.files import write_text

from .float_figures import float_cell, float_figures, float_note
from .results import FLOAT_BITS, read_cost, read_records, repository_path, results_folder, spread, values_of
from .variants import read_variants

TABLE = re.compile(r'(<!-- \[RESULTS\] (\S+) -->\n).*?(<!-- \[RESULTS END\] -->)', re.S)
SUMMARY = re.compile(r'(<!-- \[SUMMARY\] -->\n).*?(<!-- \[SUMMARY END\] -->)', re.S)
VARIANTS = re.compile(r'(<!-- \[VARIANTS\] (\S+)((?: \S+)*) -->\n).*?(<!-- \[VARIANTS END\] -->)', re.S)
DEPLOYED, FILE = 'Deployed', 'File (MB)'
# Columns of what older records lack.
OPTIONAL = {'cpu_minutes': ('CPU (min)', ), 'deployed': (DEPLOYED, FILE)}
DEPLOYED_NOTE = (' Deployed: the first metric of the exported files in ONNX Runtime, in integers, on the same images; '
                 'File: their size, low-bit weights packed.')
SEEDS = '; ± is the sample standard deviation over seeds'
MODELS = '# [MODELS] Below: made by tools/misc/update_readmes.py.\n'


@dataclass(frozen=True)
class Metric:
    """One measured column."""
    key: str  # in the evaluator's metrics
    title: str  # of the column
    name: str  # in metafiles
    factor: float = 1.0  # from the evaluator's scale to the table's (per cent)


# The first metric of a task is the one whose baselines and change are shown.
TASKS = {
    'Image Classification': (Metric('accuracy/top1', 'Top-1 (%)', 'Top 1 Accuracy'),
                             Metric('accuracy/top5', 'Top-5 (%)', 'Top 5 Accuracy')),
    'Object Detection': (Metric('coco/bbox_mAP', 'box AP (%)', 'box AP', 100.0),
                         Metric('coco/bbox_mAP_50', 'AP50 (%)', 'AP50', 100.0)),
}


@dataclass(frozen=True)
class Entry:
    """A config with what is known of it; see :func:`read_entry`."""
    config: str
    model: str
    order: int
    data: str
    task: str
    data_name: str
    w_bits: int
    a_bits: int
    weights: str | None
    calibration_images: int | None
    records: tuple[dict, ...]
    cost: dict | None

    @property
    def stem(self) -> str:
        """File name of the config."""
        return osp.splitext(osp.basename(self.config))[0]

    @property
    def architecture(self) -> str:
        """What the file name calls the model: one float network on the data of a table."""
        return split_stem(self.stem, (self.data,))[0]

    @property
    def base_name(self) -> str:
        """The model's name without the variant of the config."""
        variant = split_stem(self.stem, (self.data,))[1]
        return self.model.removesuffix(f', {variant}') if variant else self.model

    @property
    def width(self) -> str:
        """``'W2A4'``."""
        return f'W{self.w_bits}A{self.a_bits}'


def read_zoo(configs: str) -> dict:
    """``zoo.yml`` of a configs folder: ``Models`` (key -> name) and ``Data`` (key -> ``Name``, ``Task``)."""
    zoo = yaml.safe_load(_text(osp.join(configs, 'zoo.yml')))
    for key, data in zoo['Data'].items():
        if data['Task'] not in TASKS:
            raise ConfigError(f'zoo.yml: Data.{key}.Task is {data["Task"]!r}; {closest(data["Task"], TASKS)}')
    return zoo


def data_name(config: str) -> str | None:
    """Name of the data that a config of a zoo is measured on; None outside one."""
    configs = osp.join(osp.dirname(config), '..')
    if not osp.isfile(osp.join(configs, 'zoo.yml')):
        return None
    data = read_zoo(configs)['Data']
    return data[split_stem(osp.splitext(osp.basename(config))[0], data)[2]]['Name']


def split_stem(stem: str, data_keys) -> tuple[str, str, str]:
    """(model, variant, data) of a config named ``<model>_w<W>a<A>[_<variant>][_<data>]``; no data is ``imagenet``."""
    parts = stem.split('_')
    bits = next((i for i, p in enumerate(parts) if re.fullmatch(r'w\d+a\d+', p)), len(parts))
    rest = parts[bits + 1:]
    data = rest.pop() if rest and rest[-1] in data_keys else 'imagenet'
    return '_'.join(parts[:bits]), ' '.join(rest), data


def read_entry(config: str, zoo: dict) -> Entry:
    """What is known of a config; ConfigError if its records are of different data or settings."""
    cfg = Config.fromfile(config)
    model, variant, data = split_stem(osp.splitext(osp.basename(config))[0], zoo['Data'])
    names = zoo['Models']
    key = f'{model}_{data}' if f'{model}_{data}' in names else model
    records = tuple(read_records(config))
    for part in ('data', 'w_bits', 'a_bits'):
        kinds = {str(r[part]) for r in records}
        if len(kinds) > 1:
            raise ConfigError(f'the records of {config} differ in {part}: {" and ".join(sorted(kinds))}; their mean '
                              'would mean nothing. Measure all seeds again')
    dataset = cfg.train_cfg.dataloader.dataset
    images = records[0]['calibration']['images'] if records else dataset.get('num_samples')
    bits = [cfg.model.quantizer[part].bits or FLOAT_BITS for part in ('weight', 'activation')]
    return Entry(config, names.get(key, model) + (f', {variant}' if variant else ''),
                 list(names).index(key) if key in names else len(names), data, zoo['Data'][data]['Task'],
                 zoo['Data'][data]['Name'], *bits, cfg.model.float_checkpoint, images, records,
                 read_cost(config, list(records)))


def read_folder(folder: str, zoo: dict) -> list[Entry]:
    """Entries of all configs of a folder, in the order of tables."""
    entries = [read_entry(path, zoo) for path in glob(osp.join(folder, '*.py'))]
    data = list(zoo['Data'])
    return sorted(entries, key=lambda e: (data.index(e.data), e.order, e.model, -e.w_bits, -e.a_bits))


def updated_files(folder: str) -> dict[str, str]:
    """Path -> new text of a folder's README.md and metafile.yml."""
    entries = read_folder(folder, read_zoo(osp.join(folder, '..')))
    readme, metafile = (osp.join(folder, name) for name in ('README.md', 'metafile.yml'))
    return {readme: update_readme(_text(readme), folder, entries), metafile: update_metafile(_text(metafile), entries)}


def _text(path: str) -> str:
    with open(path, encoding='utf-8') as f:
        return f.read()


def update_folder(folder: str) -> None:
    """Write README.md and metafile.yml of a folder anew."""
    for path, text in updated_files(folder).items():
        write_text(path, text)


# ---- README --------------------------------------------------------------------------------------------------------
def update_readme(text: str, folder: str, entries: list[Entry]) -> str:
    """The README with all tables made anew; ConfigError for a config without a table, or a table without configs."""
    found = [match[2] for match in TABLE.finditer(text)]
    for entry in entries:
        if entry.data not in found:
            raise ConfigError(f'{folder}/README.md has no table for {entry.stem}: add the lines '
                              f'"<!-- [RESULTS] {entry.data} -->" and "<!-- [RESULTS END] -->"')
    for data in found:
        if data not in {e.data for e in entries}:
            raise ConfigError(f'{folder}/README.md has a table of {data!r}, but no config there is measured on it')
    text = SUMMARY.sub(lambda m: m[1] + summary_table(entries) + m[2], text)
    text = TABLE.sub(lambda m: m[1] + results_table([e for e in entries if e.data == m[2]]) + m[3], text)
    return VARIANTS.sub(lambda m: m[1] + variants_table(m[2], entries, m[3].split()) + m[4], text)


def variants_table(group: str, entries: list[Entry], keys: list[str] = ()) -> str:
    """Markdown of the variants of some configs: a row a variant, a column a config; a sentence before any is measured.

    Args:
        group (str): First and last part of the configs' names, ``<model>_<data>``; ConfigError for one of none.
        entries (list[Entry]): Of the folder.
        keys (list[str]): Metrics to show; default the task's first.
    """
    groups = [f'{split_stem(e.stem, ())[0]}_{e.data}' for e in entries]
    if group not in groups:
        raise ConfigError(f'[VARIANTS] {group}: no config of this folder belongs to it; {closest(group, groups)}')
    found = [(e, known) for e, g in zip(entries, groups)
             if g == group and (known := read_variants(results_folder(e.config)))]
    if not found:
        return '\nNot measured yet: `tools/analysis_tools/compare_variants.py --publish` does.\n\n'
    metric = TASKS[found[0][0].task][0]
    keys = keys or [metric.key]
    root = osp.join(osp.dirname(found[0][0].config), '..', '..')
    sources = dict.fromkeys(known['source'] for _, known in found)  # several are one table: equal names, equal rows
    files = {source: plain(Config.fromfile(osp.join(root, source)).variants) for source in sources}
    rows = [('Variant', *(e.width for e, _ in found)), [':---'] + [':---:'] * len(found)]
    for name in dict.fromkeys(name for named in files.values() for name in named):
        rows.append((name, *(_variant(e, known, name, files[known['source']], keys, metric.factor)
                             for e, known in found)))
    images = ' or '.join(sorted({str(known['data']['images']) for _, known in found}))
    lines = _lines(rows)
    shown = metric.title
    if keys != [metric.key]:
        shown = ' / '.join(k.split('/')[-1] for k in keys) + (' (%)' if metric.factor == 100 else '')
    return f'\n{lines}\n\n{shown} on {found[0][0].data_name}, {images} images{SEEDS if "±" in lines else ""}.\n\n'


def _lines(rows: list) -> str:
    """Rows of text as a table in Markdown."""
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def _variant(entry: Entry, known: dict, name: str, named: dict, keys: list[str], factor: float) -> str:
    """One cell, of the config's own records if the variant changes nothing; '-' where it was not measured as it is."""
    row = known['variants'].get(name, {})
    seeds = [m for _, m in sorted(row['seeds'].items())] if row and row['changes'] == named.get(name) else []
    if named.get(name) == {} and entry.records:
        seeds = [r['metrics'] for r in entry.records]
    if not seeds:
        return '-'
    if {} in seeds:  # CocoMetric returns no metrics where a detector finds no box at all
        return 'nothing found'
    columns = ([m[key] for m in seeds] for key in keys)  # None: measured, but no number
    return ' / '.join('-' if None in values else spread(values, factor=factor) for values in columns)


def summary_table(entries: list[Entry]) -> str:
    """Markdown of the classifiers that were measured, in the seven columns of mmpretrain's READMEs."""
    rows = [('Model', 'Params(M)', 'Flops(G)', 'Top-1 (%)', 'Top-5 (%)', 'Config', 'Download'), [':---:'] * 7]
    for e in entries:
        if e.records and e.task == 'Image Classification':
            metrics = (spread(values_of(list(e.records), m.key)) for m in TASKS[e.task])
            rows.append((f'{e.model}, {e.width}, {e.data_name}', *_size_of(e), *metrics,
                         f'[config](./{osp.basename(e.config)})', _download(e)))
    return f'\n{_lines(rows)}\n\n'


def results_table(entries: list[Entry]) -> str:
    """Markdown of one data set: a row for each measured config, how they were measured, a list of the other configs."""
    measured = [e for e in entries if e.records]
    return '\n' + (_table(measured) if measured else '') + _recipes([e for e in entries if not e.records])


def _recipes(entries: list[Entry]) -> str:
    """A line for each model: its size, and configs that wait for figures."""
    lines = []
    for model in dict.fromkeys(e.model for e in entries):
        rows = [e for e in entries if e.model == model]
        size = '{} M parameters, {} GFLOPs'.format(*_size_of(rows[0])) if rows[0].cost else ''
        facts = ', '.join(x for x in (size, _download(rows[0])) if x not in ('', '-'))
        configs = ', '.join(f'[{e.width}](./{osp.basename(e.config)})' for e in rows)
        lines.append(f'- {model}{f" ({facts})" if facts else ""}: {configs}')
    return 'Recipes without figures here:\n\n' + '\n'.join(lines) + '\n\n' if lines else ''


def _table(entries: list[Entry]) -> str:
    metrics = TASKS[entries[0].task]
    main = metrics[0].title.removesuffix(' (%)')
    main = main[0].lower() + main[1:]
    columns = ('Model', 'Data', 'Params(M)', 'Flops(G)', 'W/A bits', f'Float {main}', f'Nearest {main}',
               *(m.title for m in metrics), 'Change', DEPLOYED, FILE, 'Size (MB)', 'Time (min)', 'CPU (min)', 'Seeds',
               'Config', 'Download')
    notes = _float_notes(entries, metrics[0])
    rows = [columns, [':---:'] * len(columns), *(_row(e, metrics, e.architecture in notes) for e in entries)]
    lacking = {title for key, titles in OPTIONAL.items() if not any(key in r for e in entries for r in e.records)
               for title in titles}
    shown = [i for i, title in enumerate(columns) if title not in lacking]
    rows = [[row[i] for i in shown] for row in rows]
    return '\n\n'.join((_lines(rows), _note([r for e in entries for r in e.records]), *notes.values())) + '\n\n'


def _float_notes(entries: list[Entry], metric: Metric) -> dict[str, str]:
    """Architecture -> footnote, of those whose float model has several figures in a table."""
    notes = {}
    for architecture in dict.fromkeys(e.architecture for e in entries):
        own = [e for e in entries if e.architecture == architecture]
        figures = float_figures([r for e in own for r in e.records], metric.key, metric.factor)
        if len(figures) > 1:
            notes[architecture] = float_note(own[0].base_name, figures, metric.title)
    return notes


def _size_of(entry: Entry) -> tuple[str, str]:
    """Parameters in millions and multiply-accumulates in thousands of millions."""
    return (f'{entry.cost["params"] / 1e6:.2f}', f'{entry.cost["macs"] / 1e9:.3f}') if entry.cost else ('-', '-')


def _row(entry: Entry, metrics: tuple[Metric, ...], several_floats: bool) -> list[str]:
    records, cost, first = list(entry.records), entry.cost, metrics[0]
    measured = values_of(records, first.key)
    floats = values_of(records, first.key, 'float')
    change = [a - b for a, b in zip(measured, floats)]
    return [
        entry.model, entry.data_name, *_size_of(entry), f'{entry.w_bits}/{entry.a_bits}',
        float_cell(records, first.key, first.factor, several_floats),
        spread(values_of(records, first.key, 'nearest'), factor=first.factor),
        *(spread(values_of(records, m.key), factor=m.factor) for m in metrics),
        f'{round(mean(change) * first.factor, 2) + 0.0:+.2f}' if change else '-',  # + 0.0: no negative zero
        *_deployed(records, first),
        f'{cost["size_mb"]:.2f}', f'{mean(r["minutes"] for r in records):.1f}',
        f'{mean(r["cpu_minutes"] for r in records):.1f}' if all('cpu_minutes' in r for r in records) else '-',
        str(len(records)),
        f'[config](./{osp.basename(entry.config)})', _download(entry)]


def _deployed(records: list[dict], metric: Metric) -> tuple[str, str]:
    """The metric of exported files in ONNX Runtime, and their size: packed ones where they were made."""
    found = [r['deployed'] for r in records if 'deployed' in r]
    if not found:
        return '-', '-'
    values = [x['metrics'][metric.key] for x in found]
    size = mean((x['bytes']['packed'] or x['bytes']['qdq']) / 1e6 for x in found)
    return spread(values, factor=metric.factor), f'{size:.2f}'


def _download(entry: Entry) -> str:
    weights = entry.weights or ''
    if weights.startswith(('http://', 'https://')):
        return f'[float]({weights})'
    return f'[float](../../{weights})' if weights.startswith('checkpoints/') else '-'


def _note(records: list[dict]) -> str:
    images = ' or '.join(str(n) for n in sorted({r['data']['images'] for r in records}))
    devices = ' and '.join(sorted({r['device'] for r in records}))
    several = SEEDS if len({r['seed'] for r in records}) > 1 else ''
    deployed = DEPLOYED_NOTE if any('deployed' in r for r in records) else ''
    return f'Measured on {images} images{several}. Times on {devices}, without evaluation.{deployed}'


# ---- metafile ------------------------------------------------------------------------------------------------------
def update_metafile(text: str, entries: list[Entry]) -> str:
    """The metafile with the models behind its marker made anew; the collections before it stay."""
    collections = text.split(MODELS)[0]
    name = yaml.safe_load(collections)['Collections'][0]['Name']
    models = yaml.safe_dump(dict(Models=[_model(e, name) for e in entries]), sort_keys=False, allow_unicode=True,
                            width=200)
    return collections + MODELS + models


def _model(entry: Entry, collection: str) -> dict:
    base = float_config(entry.config)
    weights = entry.weights if (entry.weights or '').startswith(('http', 'checkpoints/')) else None
    source = dict(Name=osp.splitext(osp.basename(base))[0], Config=base, Weights=weights)
    cost = entry.cost or {}
    metadata = {'Parameters': cost.get('params'), 'FLOPs': cost.get('macs'), 'Bit Operations': cost.get('bops'),
                'Packed Size (MB)': round(cost['size_mb'], 3) if cost else None, 'Weight Bits': entry.w_bits,
                'Activation Bits': entry.a_bits, 'Evaluation Data': entry.data_name,
                'Calibration Images': entry.calibration_images, 'Float Model': _present(source)}
    name = f'{osp.basename(osp.dirname(osp.abspath(entry.config)))}_{entry.stem}'  # unique over all folders
    model = {'Name': name, 'In Collection': collection, 'Metadata': _present(metadata)}
    if entry.records:
        model['Results'] = [{'Task': entry.task, 'Dataset': entry.data_name, 'Metrics': _metrics(entry)}]
    return {**model, 'Config': repository_path(entry.config)}


def _present(values: dict) -> dict:
    return {k: v for k, v in values.items() if v is not None}


def _metrics(entry: Entry) -> dict:
    found = {}
    for metric in TASKS[entry.task]:
        for part, prefix in (('metrics', ''), ('float', 'Float '), ('nearest', 'Nearest ')):
            values = values_of(list(entry.records), metric.key, part)
            if values:
                found[prefix + metric.name] = round(mean(values) * metric.factor, 2)
    return {**found, 'Seeds': len(entry.records)}


def float_config(config: str) -> str:
    """The float model's config, at the end of the first bases of a leaf: it lies in another package or in ``float``."""
    bases = next(ast.literal_eval(node.value) for node in ast.parse(_text(config)).body
                 if isinstance(node, ast.Assign) and node.targets[0].id == '_base_')
    first = bases if isinstance(bases, str) else bases[0]
    if '::' in first:
        return first
    path = osp.normpath(osp.join(osp.dirname(config), first))
    return repository_path(path) if osp.basename(osp.dirname(path)) == 'float' else float_config(path)
