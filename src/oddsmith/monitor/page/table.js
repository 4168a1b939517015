// The table of runs: sorted, searched and filtered by any setting or figure; and the names and notes of runs.
import { clock, figure, make, plain } from './dom.js';

const FIRST_FIGURES = ['eval_loss', 'eval_rewards/accuracies', 'eval_rewards/margins', 'loss', 'log_odds_chosen'];
const FIRST_SETTINGS = 5; // of those that differ
const FACTS = ['verdict', 'state', 'step', 'model', 'updated'];
const CONDITION = /^(.+?)(<=|>=|!=|=|<|>)(.*)$/;

/** The value of a run in a column: a number where it can be read as one, else text; undefined without any. */
function valueIn(run, column) {
  const row = run.row;
  const value = column === 'name' ? run.title : column === 'verdict' ? row?.verdict : FACTS.includes(column) ? run[column] : own(row?.figures, column) ?? own(row?.settings, column);
  if (value === null || value === undefined || value === '') return undefined;
  return typeof value === 'string' && value.trim() !== '' && Number.isFinite(Number(value)) ? Number(value) : value;
}

/** An entry of an object; what every object has, such as `constructor`, is none. */
function own(entries, name) {
  return entries && Object.hasOwn(entries, name) ? entries[name] : undefined;
}

/**
 * A function that says whether a run is looked for. Words are looked for in its name, note, model and settings;
 * conditions such as `learning_rate<1e-4`, `state=finished` or `eval_loss<=2` compare its value in a column. All have to
 * hold; a value with spaces cannot be searched for.
 */
export function finder(text) {
  const parts = text.toLowerCase().split(/\s+/).filter(Boolean).map((part) => ({ part, condition: CONDITION.exec(part) }));
  return (run) => parts.every(({ part, condition }) => (condition ? holds(run, condition) : textsOf(run).some((one) => one.includes(part))));
}

function textsOf(run) {
  return [run.title, run.name, run.note, run.model, ...Object.values(run.row?.settings ?? {})].map((one) => String(one ?? '').toLowerCase());
}

function holds(run, [, column, sign, wanted]) {
  const name = columnsOf([run]).find((one) => one.toLowerCase() === column);
  const value = name === undefined ? undefined : valueIn(run, name);
  if (value === undefined) return sign === '!=';
  const isFigure = wanted !== '' && Number.isFinite(Number(wanted));
  if (isFigure && typeof value !== 'number' && /[<>]/.test(sign)) return false; // "not finite" has no order
  const [left, right] = typeof value === 'number' && isFigure ? [value, Number(wanted)] : [String(value).toLowerCase(), wanted];
  return { '=': left === right, '!=': left !== right, '<': left < right, '>': left > right, '<=': left <= right, '>=': left >= right }[sign];
}

function columnsOf(runs) {
  return ['name', ...new Set([...FACTS, ...runs.flatMap((run) => [...Object.keys(run.row?.figures ?? {}), ...Object.keys(run.row?.settings ?? {})])])];
}

/** The columns that are shown as long as none are chosen: facts, the first figures, and settings that differ. */
function usualColumns(runs) {
  const all = columnsOf(runs);
  const differ = all.filter((name) => runs.some((run) => name in (run.row?.settings ?? {})) && new Set(runs.map((run) => run.row?.settings[name]).filter((value) => value !== undefined)).size > 1);
  return ['verdict', 'state', 'step', ...FIRST_FIGURES.filter((name) => all.includes(name)), ...differ.filter((name) => !/(^|_)(dir|path|name)$/.test(name)).slice(0, FIRST_SETTINGS)];
}

/** The runs in the order of a column; those without a value come last. */
export function sorted(runs, sort) {
  if (!sort) return runs;
  const [column, sign] = sort.startsWith('-') ? [sort.slice(1), -1] : [sort, 1];
  const order = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === 'number' ? -1 : 1);
  return [...runs].sort((one, other) => {
    const [a, b] = [valueIn(one, column), valueIn(other, column)];
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return sign * order(a, b);
  });
}

function written(column, value) {
  if (value === undefined) return '–';
  if (column === 'updated') return new Date(value * 1000).toLocaleString('sv').slice(0, 16);
  return typeof value === 'number' ? figure(value) : plain(value);
}

/**
 * Draw the table. `actions` are `toggle(id)`, `showAll(ids)`, `edit(run)`, `sort(column)` and `choose(columns)`; with
 * null in place of `edit` names and notes cannot be changed.
 */
export function drawTable(place, runs, shown, view, actions) {
  const found = sorted(runs.filter(finder(view.find)), view.sort);
  const columns = (view.columns ?? usualColumns(runs)).filter((name) => name !== 'name');
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const scrolled = ['.scroll', '.choices'].map((part) => [part, place.querySelector(part)?.scrollLeft ?? 0, place.querySelector(part)?.scrollTop ?? 0]);
  const head = make('tr', {}, make('th', { scope: 'col' }, make('span', { class: 'hidden' }, 'Shown')), ...['name', ...columns].map((name) => heading(name, view.sort, actions.sort)));
  const rows = found.map((run) => make('tr', {}, make('td', {}, box(run, shown, actions.toggle)), make('th', { scope: 'row' }, plain(run.title), noteOf(run), actions.edit ? editButton(run, actions.edit) : null),
    ...columns.map((name) => make('td', { class: typeof valueIn(run, name) === 'number' ? 'number' : null }, written(name, valueIn(run, name))))));
  const count = found.length === runs.length ? `${runs.length} runs` : `${found.length} of ${runs.length} runs`;
  place.replaceChildren(make('div', { class: 'table-head' }, make('span', { role: 'status' }, count),
    make('button', { type: 'button', 'data-key': 'all', onclick: () => actions.showAll(found.map((run) => run.id)) }, found.length === 1 ? 'Show it' : `Show these ${found.length}`), chooser(runs, columns, actions.choose)),
    make('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Table of runs' }, make('table', {}, make('thead', {}, head), make('tbody', {}, ...rows))));
  for (const [part, left, top] of scrolled) place.querySelector(part).scrollTo(left, top);
  if (focused) place.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

function heading(name, sort, onSort) {
  const way = sort === name ? 'ascending' : sort === `-${name}` ? 'descending' : null;
  const arrow = { ascending: ' ↑', descending: ' ↓' }[way] ?? '';
  return make('th', { scope: 'col', 'aria-sort': way }, make('button', { type: 'button', 'data-key': `sort-${name}`, onclick: () => onSort(way === 'ascending' ? `-${name}` : way === 'descending' ? null : name) }, plain(name) + arrow));
}

function box(run, shown, onToggle) {
  const check = make('input', { type: 'checkbox', 'data-key': `box-${run.id}`, 'aria-label': `show ${plain(run.title)}`, onchange: () => onToggle(run.id) });
  check.checked = shown.includes(run.id);
  return check;
}

function noteOf(run) {
  const was = run.title === run.name ? null : make('span', { class: 'note' }, plain(run.name));
  const first = run.note.split('\n')[0];
  return make('span', {}, was, run.note ? make('span', { class: 'note', title: plain(run.note) }, plain(first.length > 80 || first !== run.note ? `${first.slice(0, 80)} …` : first)) : null);
}

export function editButton(run, onEdit) {
  return make('button', { type: 'button', class: 'edit', 'data-key': `edit-${run.id}`, 'aria-label': `Name and note of ${plain(run.title)}`, onclick: () => onEdit(run) }, 'Edit');
}

let isChoosing = false;

function chooser(runs, columns, onChoose) {
  const boxes = columnsOf(runs).filter((name) => name !== 'name').map((name) => {
    const check = make('input', { type: 'checkbox', 'data-key': `column-${name}`, onchange: (event) => onChoose(event.target.checked ? [...columns, name] : columns.filter((one) => one !== name)) });
    check.checked = columns.includes(name);
    return make('label', {}, check, plain(name));
  });
  return make('details', { class: 'chooser', open: isChoosing, ontoggle: (event) => { isChoosing = event.target.open; } }, make('summary', {}, 'Columns'),
    make('div', { class: 'choices' }, make('button', { type: 'button', 'data-key': 'usual', onclick: () => onChoose(null) }, 'The usual ones'), ...boxes));
}

/** Ask for the name and the note of a run; `save({name, note})` returns what went wrong, or an empty text. */
export function editNote(dialog, run, save) {
  const name = make('input', { type: 'text', maxlength: 200, id: 'note-name', placeholder: plain(run.name) });
  const note = make('textarea', { rows: 6, maxlength: 10000, id: 'note-text' });
  const fault = make('p', { role: 'alert', class: 'fault' });
  name.value = run.title === run.name ? '' : run.title;
  note.value = run.note;
  const keep = async () => {
    fault.textContent = await save({ name: name.value, note: note.value });
    if (!fault.textContent) dialog.close();
  };
  name.addEventListener('keydown', (event) => { if (event.key === 'Enter' && !event.isComposing) keep(); });
  dialog.replaceChildren(make('h2', { id: 'note-title' }, `Name and note of ${plain(run.name)}`), make('label', { for: 'note-name' }, 'Name'), name, make('label', { for: 'note-text' }, 'Note'), note, fault,
    make('div', { class: 'tabs' }, make('button', { type: 'button', class: 'main', onclick: keep }, 'Save'), make('button', { type: 'button', onclick: () => dialog.close() }, 'Cancel')));
  dialog.showModal();
  name.focus();
}

/** When a run last said something, and how long it has to go, in words. */
export function stateOf(run) {
  if (run.state === 'unreadable') return 'not readable';
  const left = run.seconds_left === null ? '' : `, ${clock(run.seconds_left)} left`;
  return `${run.state}, ${run.unit.replace(/s$/, '')} ${run.step}${run.max_steps > run.step ? ` of ${run.max_steps}` : ''}${left}`;
}
