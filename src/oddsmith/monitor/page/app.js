// Fetches what is new of the runs and draws the page.
import { chartFigure } from './charts.js';
import { CATALOGUE, make } from './dom.js';
import { drawPairs, drawRuns, drawSamples, drawSets, drawSettings, drawVerdict, setsOf } from './panels.js';

const MAX_POINTS_KEPT = 4000; // of a curve; beyond it the server thins the whole again
const state = { runs: [], shown: [], known: new Map(), view: { range: null, step: null, set: null }, finding: -1 };
const at = (id) => document.getElementById(id);
const charts = CATALOGUE.charts.map((chart) => chartFigure(chart, setRange));
const saved = readEmbedded();

function readEmbedded() {
  const element = at('report-data');
  return element ? JSON.parse(element.textContent) : null;
}

async function get(path) {
  const response = await fetch(path, { cache: 'no-store' });
  if (!response.ok) throw new Error(`${response.status}`);
  return response.json();
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
      await Promise.all(state.shown.map(fetchRun));
      draw();
    } while (again);
    say('');
  } catch {
    say('The monitor does not answer; trying again.');
  } finally {
    busy = false;
  }
}

async function fetchRun(id) {
  const known = state.known.get(id);
  const asked = new URLSearchParams();
  if (known && !known.stale) { asked.set('after', known.series.version); asked.set('generation', known.series.generation); }
  if (state.view.range) { asked.set('first', Math.floor(state.view.range[0])); asked.set('last', Math.ceil(state.view.range[1])); }
  const [series, details] = await Promise.all([get(`api/runs/${id}/series?${asked}`), get(`api/runs/${id}/details`)]);
  const merged = series.complete || !known ? series : merge(known.series, series);
  state.known.set(id, { series: merged, details, stale: longest(merged) > MAX_POINTS_KEPT });
}

function merge(old, added) {
  const join = (before, after) => {
    const joined = { ...before };
    for (const [name, more] of Object.entries(after)) {
      const known = joined[name];
      joined[name] = known ? { steps: [...known.steps, ...more.steps], values: [...known.values, ...more.values], thinned: known.thinned || more.thinned } : more;
    }
    return joined;
  };
  const held = { ...old.held_out };
  for (const [set, metrics] of Object.entries(added.held_out)) held[set] = join(held[set] ?? {}, metrics);
  return { ...added, training: join(old.training, added.training), held_out: held };
}

function longest(series) {
  return Math.max(0, ...Object.values(series.training).map((one) => one.steps.length));
}

function chosenBefore() {
  const wanted = new URLSearchParams(location.hash.slice(1)).get('runs')?.split(',') ?? [];
  const found = wanted.filter((id) => state.runs.some((run) => run.id === id));
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
  return state.shown.map((id, number) => ({ number, summary: state.runs.find((run) => run.id === id), ...state.known.get(id) })).filter((run) => run.summary && run.series);
}

function draw() {
  const shown = shownRuns();
  drawRuns(at('runs'), state.runs, state.shown, toggle);
  if (shown.length) drawVerdict(at('verdict'), shown, jump);
  else at('verdict').replaceChildren(make('h2', { id: 'verdict-title' }, state.runs.length ? 'No run is shown' : 'No runs here yet'),
    make('p', { class: 'empty' }, state.runs.length ? 'Choose one in the list.' : 'Start one with oddsmith train; it appears here by itself.'));
  const sets = setsOf(shown);
  const view = { ...state.view, set: sets.includes(state.view.set) ? state.view.set : sets[0] };
  drawSets(at('sets'), sets, view.set, (set) => { state.view.set = set; draw(); });
  for (const chart of charts) chart.draw(shown, view);
  drawPairs(at('pairs'), shown, view.set);
  drawSamples(at('samples'), shown, view.set);
  drawSettings(at('settings'), shown);
}

// ---- Input

function toggle(id) {
  state.shown = state.shown.includes(id) ? state.shown.filter((one) => one !== id) : [...state.shown, id];
  if (!saved) history.replaceState(null, '', `#${new URLSearchParams({ runs: state.shown.join(',') })}`);
  refetch();
}

function refetch() {
  for (const known of state.known.values()) known.stale = true;
  if (saved) draw();
  else update();
}

let waiting = 0;

/** Show a range of steps in all charts; null for all steps. */
function setRange(range) {
  if (JSON.stringify(range) === JSON.stringify(state.view.range)) return;
  state.view.range = range;
  clearTimeout(waiting);
  waiting = setTimeout(refetch, 60);
}

function jump(step) {
  state.view.step = step;
  const last = Math.max(...shownRuns().map((run) => run.summary.step), step + 1);
  const reach = Math.max(last * 0.15, 5);
  state.view.range = [Math.max(0, step - reach), Math.min(last, step + reach)];
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
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^[1-9]$/.test(event.key) && state.runs[event.key - 1]) toggle(state.runs[event.key - 1].id);
  else if (event.key === 't') switchTheme();
  else if (event.key === 'j') nextFinding(1);
  else if (event.key === 'k') nextFinding(-1);
  else if (event.key === 'r') { state.view.step = null; state.view.range = null; refetch(); }
}

at('charts').append(...charts.map((chart) => chart.element));
at('theme').addEventListener('click', switchTheme);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { nameTheme(); draw(); });
document.addEventListener('keydown', onKey);
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
