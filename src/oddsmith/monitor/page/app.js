// Fetches what is new of the runs and draws the page.
import { axisOf, hasAxis, X_AXES } from './axes.js';
import { chartFigure } from './charts.js';
import { MANY } from './curves.js';
import { CATALOGUE, make } from './dom.js';
import { drawConsole, drawPairs, drawRuns, drawSamples, drawSets, drawSettings, drawVerdict, setsOf } from './panels.js';
import { drawTable, editNote, finder } from './table.js';
import { hashOf, viewOf } from './view.js';

const POINTS_DRAWN = 20_000; // of a line of a chart, over all runs; the server thins each run to its part
const TABLE_EVERY_MS = 2000;
const state = { runs: [], shown: [], known: new Map(), rows: new Map(), view: viewOf(location.hash), finding: -1, console: null };
const at = (id) => document.getElementById(id);
const charts = CATALOGUE.charts.map((chart) => chartFigure(chart, setRange, toggleLog));
const saved = readEmbedded();

function readEmbedded() {
  const element = at('report-data');
  return element ? JSON.parse(element.textContent) : null;
}

class NoAnswer extends Error {}

async function get(path) {
  try {
    const response = await fetch(path, { cache: 'no-store' });
    if (!response.ok) throw new NoAnswer(`${response.status}`);
    return await response.json();
  } catch (error) {
    throw new NoAnswer(path, { cause: error });
  }
}

// ---- Fetching

let busy = false;
let again = false;

/** Fetch what is new of the runs that are shown, then draw. Calls during a fetch lead to one more fetch, not to many. */
async function update() {
  if (busy) { again = true; return; }
  busy = true;
  try {
    do {
      again = false;
      state.runs = await get('api/runs');
      if (!state.shown.length && state.runs.length) state.shown = chosenBefore();
      state.shown = state.shown.filter((id) => state.runs.some((run) => run.id === id));
      await Promise.all([...state.shown.map(fetchRun), fetchTable()]);
      await fetchConsole();
      say('');
      draw();
    } while (again);
  } catch (error) {
    if (!(error instanceof NoAnswer)) throw error;
    say('The monitor does not answer; trying again.');
  } finally {
    busy = false;
  }
}

function pointsOfRun() {
  return Math.max(100, Math.min(2000, 2 * Math.floor(POINTS_DRAWN / state.shown.length / 2)));
}

async function fetchRun(id) {
  const known = state.known.get(id);
  const summary = state.runs.find((run) => run.id === id);
  const isDetailed = state.shown.length <= MANY;
  if (isDetailed && known && !known.details) known.stale = true;
  if (known && !known.stale && known.series.version === summary.version && known.judged) return;
  const asked = new URLSearchParams({ points: pointsOfRun() });
  if (known && !known.stale) { asked.set('after', known.series.version); asked.set('generation', known.series.generation); }
  const range = known ? stepsOf(known.series) : null;
  if (range) { asked.set('first', Math.floor(range[0])); asked.set('last', Math.ceil(range[1])); }
  const [series, details] = await Promise.all([get(`api/runs/${id}/series?${asked}`), isDetailed ? get(`api/runs/${id}/details`) : null]);
  if (!known && state.view.range) again = true; // now that its axis is known
  const merged = series.complete || !known ? series : merge(known.series, series);
  // While a run goes on, its findings may be older than its curves.
  state.known.set(id, { series: merged, details, stale: (!known && state.view.range !== null) || longest(merged) > 2 * pointsOfRun(), judged: summary.state !== 'running' && summary.state !== 'reading' });
}

let tableFetched = 0;
let tableTimer = 0;

/** Whether the table of runs is needed: it is open, or runs are looked for by what it holds. */
function needsTable() {
  return !saved && (state.view.table || state.view.find !== '');
}

async function fetchTable() {
  if (!needsTable()) return;
  clearTimeout(tableTimer);
  const age = Date.now() - tableFetched;
  if (age < TABLE_EVERY_MS) { tableTimer = setTimeout(update, TABLE_EVERY_MS - age); return; }
  tableFetched = Date.now();
  state.rows = new Map((await get('api/table')).map((row) => [row.id, row]));
}

async function fetchConsole() {
  const run = at('console').querySelector('details')?.open ? shownRuns().find((one) => one.details?.has_console) : null;
  if (run) state.console = { id: run.summary.id, text: (await get(`api/runs/${run.summary.id}/console`)).text };
}

/** The range that is looked at in steps of a run; null for the whole. */
function stepsOf(series) {
  const steps = state.view.range?.map(axisOf({ series }, state.view.x).step);
  return steps?.every(Number.isFinite) ? steps : null;
}

function merge(old, added) {
  const join = (before, after) => {
    const joined = { ...before };
    for (const [name, more] of Object.entries(after)) {
      const known = Object.hasOwn(joined, name) ? joined[name] : null;
      joined[name] = known ? { steps: [...known.steps, ...more.steps], values: [...known.values, ...more.values], thinned: known.thinned || more.thinned } : more;
    }
    return joined;
  };
  const held = { ...old.held_out };
  for (const [set, metrics] of Object.entries(added.held_out)) held[set] = join(Object.hasOwn(held, set) ? held[set] : {}, metrics);
  return { ...added, training: join(old.training, added.training), axes: join(old.axes, added.axes), held_out: held };
}

function longest(series) {
  return Math.max(0, ...Object.values(series.training).map((one) => one.steps.length));
}

function chosenBefore() {
  const found = (state.view.runs ?? []).filter((id) => state.runs.some((run) => run.id === id));
  return found.length ? found : [state.runs[0].id];
}

function listen() {
  const source = new EventSource('api/changes');
  source.addEventListener('message', update);
  source.addEventListener('error', () => say('The monitor does not answer; trying again.'));
}

function say(text) {
  if (at('connection').textContent !== text) at('connection').textContent = text;
}

// ---- Drawing

function shownRuns() {
  const found = state.shown.map((id, number) => ({ number, summary: state.runs.find((run) => run.id === id), ...state.known.get(id) })).filter((run) => run.summary && run.series);
  return found.length > MANY ? found.map((run) => ({ ...run, details: null })) : found;
}

function draw() {
  const shown = shownRuns();
  drawList();
  if (shown.length) drawVerdict(at('verdict'), shown, jump, saved ? null : edit);
  else at('verdict').replaceChildren(make('h2', { id: 'verdict-title' }, state.runs.length ? 'No run is shown' : 'No runs here yet'),
    make('p', { class: 'empty' }, state.runs.length ? 'Choose one in the list.' : 'Start one with oddsmith train; it appears here by itself.'));
  const sets = setsOf(shown);
  const view = drawCharts();
  drawSets(at('sets'), sets, view.set, (set) => { state.view.set = set; changed(); });
  drawPairs(at('pairs'), shown, view.set);
  drawSamples(at('samples'), shown, view.set);
  drawConsole(at('console'), shown, state.console, update);
  drawSettings(at('settings'), shown);
}

/** The charts, with their controls; the view that they show. */
function drawCharts() {
  const shown = shownRuns();
  const sets = setsOf(shown);
  const x = axisNow();
  const view = { ...state.view, x, range: x === state.view.x ? state.view.range : null, set: sets.includes(state.view.set) ? state.view.set : sets[0] };
  drawTools(shown, x);
  for (const chart of charts) chart.draw(shown, view);
  return view;
}

/** The list of runs, and their table if it is open. */
function drawList() {
  const runs = state.runs.map((run) => ({ ...run, row: state.rows.get(run.id) }));
  const found = new Set(runs.filter(finder(state.view.find)).map((run) => run.id));
  at('runs-count').textContent = `${found.size < runs.length ? `${found.size} of ` : ''}${runs.length} run${runs.length === 1 ? '' : 's'}`;
  at('find').hidden = saved !== null;
  at('open-table').hidden = saved !== null;
  at('open-table').setAttribute('aria-pressed', String(state.view.table));
  if (at('find').value !== state.view.find && document.activeElement !== at('find')) at('find').value = state.view.find;
  drawRuns(at('runs'), state.runs, state.runs.filter((run) => found.has(run.id)), state.shown, toggle);
  at('table').hidden = !state.view.table;
  if (!state.view.table) return;
  drawTable(at('table'), runs, state.shown, state.view, {
    toggle, edit: saved ? null : edit, showAll: (ids) => { state.shown = ids; refetch(); },
    sort: (column) => { state.view.sort = column; changed(); }, choose: (columns) => { state.view.columns = columns; changed(); },
  });
}

/** What the charts are drawn over: the axis that was chosen, or steps as long as no run that is shown records it. */
function axisNow() {
  return shownRuns().some((run) => hasAxis(run, state.view.x)) ? state.view.x : 'step';
}

/** The controls of all charts: smoothing, and what they are drawn over. */
function drawTools(shown, x) {
  at('tools').hidden = !shown.length;
  at('smooth').value = state.view.smooth;
  at('smooth-value').textContent = state.view.smooth.toFixed(2);
  for (const button of at('axes').querySelectorAll('button')) {
    const kind = button.value;
    button.setAttribute('aria-pressed', String(kind === x));
    button.disabled = kind !== x && !shown.some((run) => hasAxis(run, kind));
    button.title = button.disabled ? `no run that is shown records its ${X_AXES[kind].name}` : '';
  }
}

// ---- Input

/** Remember the view in the address, and draw it. */
function changed() {
  remember();
  draw();
}

function remember() {
  if (saved) return;
  state.view.runs = state.shown;
  history.replaceState(null, '', hashOf(state.view));
}

let remembering = 0;

/** Remember the view once it stays: browsers bound how often an address changes. */
function rememberSoon() {
  clearTimeout(remembering);
  remembering = setTimeout(remember, 200);
}

/** Show or hide a run. The others are fetched again only where their number of points changes. */
function toggle(id) {
  const points = pointsOfRun();
  state.shown = state.shown.includes(id) ? state.shown.filter((one) => one !== id) : [...state.shown, id];
  if (pointsOfRun() === points) fetchNew();
  else refetch();
}

function refetch() {
  for (const known of state.known.values()) known.stale = true;
  fetchNew();
}

function fetchNew() {
  remember();
  if (saved) draw();
  else update();
}

function openTable() {
  state.view.table = !state.view.table;
  remember();
  drawList();
  if (state.view.table) { tableFetched = 0; update(); }
}

let findTimer = 0;

/** Look for runs, once nothing has been typed for a moment. */
function find(text) {
  state.view.find = text;
  clearTimeout(findTimer);
  findTimer = setTimeout(() => { remember(); drawList(); update(); }, 150);
}

/** Ask for the name and the note of a run, and keep them. */
function edit(run) {
  editNote(at('note'), run, async (note) => {
    try {
      const response = await fetch(`api/runs/${run.id}/note`, { method: 'PUT', headers: { 'content-type': 'application/json' }, body: JSON.stringify(note) });
      if (!response.ok) return response.text();
      update();
      return '';
    } catch {
      return 'The monitor does not answer.';
    }
  });
}

let waiting = 0;

/** Show a range of the horizontal axis in all charts; null for the whole. */
function setRange(range) {
  if (JSON.stringify(range) === JSON.stringify(state.view.range)) return;
  if (range) state.view.x = axisNow();
  state.view.range = range;
  clearTimeout(waiting);
  waiting = setTimeout(refetch, 60);
}

function setAxis(kind) {
  state.view.x = kind;
  state.view.range = null;
  refetch();
}

let smoothing = 0;

function setSmoothing(weight) {
  state.view.smooth = weight;
  at('smooth-value').textContent = weight.toFixed(2);
  cancelAnimationFrame(smoothing);
  smoothing = requestAnimationFrame(() => { rememberSoon(); drawCharts(); });
}

function toggleLog(id) {
  state.view.log[state.view.log.has(id) ? 'delete' : 'add'](id);
  remember();
  drawCharts();
}

/** Go to a step of a run, on its own axis; a run that does not record the axis leaves the range as it is. */
function jump(step, run) {
  state.view.step = step;
  state.view.stepOf = run.summary.id;
  state.view.x = axisNow();
  const last = Math.max(run.summary.step, step + 1);
  const reach = Math.max(last * 0.15, 5);
  const range = [Math.max(0, step - reach), Math.min(last, step + reach)].map(axisOf(run, state.view.x).place);
  if (range.every(Number.isFinite)) state.view.range = range;
  refetch();
  at('charts').scrollIntoView({ block: 'start' });
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
}

function nameTheme() {
  at('theme').textContent = isDark() ? 'Light' : 'Dark';
}

function switchTheme() {
  const theme = isDark() ? 'light' : 'dark';
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem('oddsmith-theme', theme); } catch { /* storage is switched off: for this page only */ }
  nameTheme();
  draw();
}

function nextFinding(by) {
  const buttons = [...document.querySelectorAll('[data-jump]')];
  if (!buttons.length) return;
  state.finding = (state.finding + by + buttons.length) % buttons.length;
  buttons[state.finding].click();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest('dialog') || event.target.matches('input:not([type=checkbox], [type=range]), textarea')) return;
  if (/^[1-9]$/.test(event.key) && state.runs[event.key - 1]) toggle(state.runs[event.key - 1].id);
  else if (event.key === 't') switchTheme();
  else if (event.key === 'a' && !saved) openTable();
  else if (event.key === 'j') nextFinding(1);
  else if (event.key === 'k') nextFinding(-1);
  else if (event.key === 'r') { state.view.step = null; state.view.range = null; refetch(); }
}

/** Another address was opened in this page, as by the button for the page before. */
function onAddress() {
  state.view = viewOf(location.hash);
  if (state.runs.length && !saved) state.shown = chosenBefore();
  refetch();
}

at('axes').append(...Object.entries(X_AXES).map(([kind, { name }]) => make('button', { type: 'button', value: kind, onclick: () => setAxis(kind) }, name)));
at('charts').append(...charts.map((chart) => chart.element));
at('smooth').addEventListener('input', (event) => setSmoothing(Number(event.target.value)));
at('theme').addEventListener('click', switchTheme);
at('open-table').addEventListener('click', openTable);
at('find').addEventListener('input', (event) => find(event.target.value));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { nameTheme(); draw(); });
document.addEventListener('keydown', onKey);
window.addEventListener('hashchange', onAddress);
nameTheme();
if (saved) {
  state.runs = saved.runs.map((run) => run.summary);
  state.shown = state.runs.map((run) => run.id);
  for (const run of saved.runs) state.known.set(run.summary.id, { series: run.series, details: run.details });
  draw();
} else {
  listen();
  update();
}
