// The figures of the charts: caption, plot, and the values beside it, which follow the pointer.
import { axisOf, hasAxis, X_AXES } from './axes.js';
import { arePositive, correlation, curvesOf, HELD_OUT, lengthsOf, MANY, nearest, snapshotsOf, TRAINING } from './curves.js';
import { clock, colour, figure, make, plain } from './dom.js';
import { saveData, savePicture } from './saving.js';
import { areOutlines, layoutOf, toneOfEvaluation, tracesOf } from './traces.js';

const NEAR = 0.02; // of the axis: how far from the pointer a value may be
const PLOT = { displayModeBar: false, responsive: true, scrollZoom: false };

/** Draws charts one after another while nothing else is to be done, so that the page answers meanwhile. */
const queue = { waiting: new Set(), scheduled: false };
const whenIdle = window.requestIdleCallback ?? ((call) => setTimeout(() => call({ timeRemaining: () => 10 }), 16));

function drawLater(draw) {
  queue.waiting.add(draw);
  if (queue.scheduled) return;
  queue.scheduled = true;
  whenIdle(function next() {
    const [first] = queue.waiting;
    queue.waiting.delete(first);
    queue.scheduled = queue.waiting.size > 0;
    if (queue.scheduled) whenIdle(next);
    first();
  });
}

/**
 * The figure of a chart, empty. `onRange` gets the range that was dragged over, or null for the whole; `onLog` the id of
 * a chart whose vertical axis is to change between linear and logarithmic.
 */
export function chartFigure(chart, onRange, onLog) {
  const plot = make('div', { class: 'plot', role: 'img', 'aria-labelledby': `${chart.id}-title ${chart.id}-now` });
  const now = make('p', { class: 'now', id: `${chart.id}-now` });
  const log = make('button', { type: 'button', class: 'log', title: 'Logarithmic vertical axis', onclick: () => onLog(chart.id) }, 'Log');
  const tools = make('span', { class: 'tools', role: 'group', 'aria-label': `${chart.title}: axis and files` }, log,
    make('button', { type: 'button', title: 'Save as a picture', onclick: () => savePicture(chart, plot) }, 'PNG'),
    make('button', { type: 'button', title: 'Save the points that are drawn', onclick: () => saveData(chart, plot, latest.view) }, 'CSV'));
  const caption = make('figcaption', {}, make('div', { class: 'head' }, make('h3', { id: `${chart.id}-title` }, chart.title), tools), make('p', { class: 'watch-for' }, chart.watch));
  const element = make('figure', { id: `chart-${chart.id}`, hidden: true }, caption, plot, now);
  let latest = null, isDue = false, isSeen = false, isListening = false;

  const draw = () => {
    if (!isDue) return;
    isDue = false;
    const { shown, view } = latest;
    const curves = chart.kind === 'lines' ? curvesOf(chart, shown, view) : [];
    latest.curves = curves;
    const traces = tracesOf(chart, shown, view, curves);
    const marked = shown.find((run) => run.summary.id === view.stepOf) ?? shown[0];
    const canBeLog = arePositive(curves);
    const isLog = canBeLog && view.log.has(chart.id);
    const layout = layoutOf(chart, shown, view, curves, marked ? axisOf(marked, view.x).place : null, isLog);
    if (traces[0]?.occupied) layout[areOutlines(shown[0], view.set) ? 'xaxis' : 'yaxis'].range = traces[0].occupied;
    log.hidden = !canBeLog;
    log.setAttribute('aria-pressed', String(isLog));
    window.Plotly.react(plot, traces, layout, PLOT);
    if (!isListening) listen();
    now.replaceChildren(...legend(chart, shown, view, curves));
  };
  const listen = () => {
    isListening = true;
    plot.on('plotly_relayout', (change) => {
      if (change['xaxis.range[0]'] !== undefined) onRange([change['xaxis.range[0]'], change['xaxis.range[1]']]);
      else if (change['xaxis.autorange']) onRange(null);
    });
    if (chart.kind !== 'lines') return;
    plot.on('plotly_hover', ({ points }) => now.replaceChildren(...legend(chart, latest.shown, latest.view, latest.curves, points[0])));
    plot.on('plotly_unhover', () => now.replaceChildren(...legend(chart, latest.shown, latest.view, latest.curves)));
  };
  new IntersectionObserver(([entry]) => { isSeen = entry.isIntersecting; if (isSeen) draw(); }, { rootMargin: '200px' }).observe(element);

  return {
    element,
    draw: (shown, view) => {
      latest = { shown, view, curves: latest?.curves ?? [] };
      const wasHidden = element.hidden;
      element.hidden = !hasData(chart, shown, view);
      if (element.hidden) return;
      isDue = true;
      if (isSeen && !wasHidden) draw();
      else if (shown.length <= MANY) drawLater(draw); // of more runs only the charts that are seen are drawn
    },
  };
}

function hasData(chart, shown, view) {
  if (chart.kind === 'ranks') return shown.some((run) => run.details?.ranks?.waiting_share.length);
  if (chart.kind === 'histogram') return shown.length > 0 && snapshotsOf(shown[0], view.set).length > 0;
  if (chart.kind === 'lengths') return shown.some((run) => lengthsOf(run, view.set).length);
  return shown.some((run) => chart.lines.some((line) => line.metric in run.series.training || Object.values(run.series.held_out).some((metrics) => line.metric in metrics)));
}

// ---- Values beside the plot, as text: a screen reader reads them in place of the picture.

function legend(chart, shown, view, curves, hovered) {
  if (chart.kind === 'ranks') return shown.filter((run) => run.summary.waiting).map(({ summary }) => make('span', {}, shown.length > 1 ? `${plain(summary.title)}: ` : '', 'mean ', make('b', {}, `${(100 * summary.waiting.mean).toFixed(1)}%`), `, most for rank ${summary.waiting.slowest}`));
  if (chart.kind === 'lengths') return shown.filter((run) => lengthsOf(run, view.set).length > 2).map((run) => lengthLegend(run, view.set, shown.length > 1));
  if (chart.kind === 'histogram') return marginLegend(shown[0], view.set);
  if (shown.length > MANY) return crowdLegend(chart, shown, view, hovered);
  const place = hovered?.x;
  const reach = hovered ? NEAR * (hovered.xaxis.range[1] - hovered.xaxis.range[0]) : 0;
  const at = (curve, values) => { const i = nearest(curve.x, place); return Math.abs(curve.x[i] - place) <= reach ? values[i] : null; };
  const latest = (values) => values.findLast((one) => one !== null);
  const value = (curve) => figure(hovered ? at(curve, curve.y) : latest(curve.y));
  const heads = curves.filter((curve) => curve.of === TRAINING || !curves.some((other) => other.base === curve.base && other.of === TRAINING));
  const lines = heads.map((curve) => {
    const smooth = curve.smooth ? `, smoothed ${figure(hovered ? at(curve, curve.smooth) : latest(curve.smooth))}` : '';
    const others = curves.filter((other) => other !== curve && other.base === curve.base && (!hovered || at(other, other.y) !== null));
    const held = others.map((other) => `, ${HELD_OUT}${other.set ? ` ${plain(other.set)}` : ''} ${value(other)}`);
    return make('span', {}, key(curve.tone, curve.of === HELD_OUT ? 'dot' : curve.dash), `${plain(curve.base)} `, make('b', {}, value(curve)), smooth, ...held);
  });
  const missing = leftOut(chart, shown, view);
  if (hovered) return [...lines, make('span', { class: 'where' }, `at ${placed(view.x, place)}`), ...missing];
  const dots = curves.some((curve) => curve.of === HELD_OUT) && heads.some((curve) => curve.of === TRAINING) ? [make('span', { class: 'held' }, key(colour('quiet'), 'dot ring'), 'dotted: held out')] : [];
  return [...lines, ...dots, ...missing];
}

/** Which runs a chart of lines leaves out, because they do not record what it is drawn over. */
function leftOut(chart, shown, view) {
  const runs = shown.filter((run) => !hasAxis(run, view.x) && hasData(chart, [run], view));
  if (!runs.length) return [];
  const named = runs.length > MANY ? `${runs.length} runs` : runs.map((run) => plain(run.summary.title)).join(', ');
  return [make('span', { class: 'where' }, `not drawn, without ${X_AXES[view.x].name}: ${named}`)];
}

/** A place on an axis in words. */
function placed(kind, place) {
  if (kind === 'step' || kind === 'epoch') return `${kind} ${figure(place)}`;
  return kind === 'time' ? clock(place) : `${Math.round(place).toLocaleString('en')} tokens`;
}

/** With many runs: how many there are, or the curve under the pointer. */
function crowdLegend(chart, shown, view, hovered) {
  const curve = hovered?.data?.curve;
  if (!curve) return [make('span', {}, `${shown.length} runs; the pointer names a curve`), ...leftOut(chart, shown, view)];
  return [make('span', {}, key(curve.tone, curve.of === HELD_OUT ? 'dot' : curve.dash), `${plain(curve.label)} `, make('b', {}, figure(hovered.y))), make('span', { class: 'where' }, `at ${placed(view.x, hovered.x)}`)];
}

function key(tone, dash) {
  const sign = make('i', { class: `key ${dash === 'solid' ? '' : dash}` });
  sign.style.borderColor = tone;
  return sign;
}

/** Of a few evaluations each outline, of many the last: its step, and the share of the pairs below zero. */
function marginLegend(run, set) {
  const sets = snapshotsOf(run, set);
  const below = (one) => make('b', {}, `${Math.round(100 * one.below_zero)}%`);
  if (!areOutlines(run, set)) return [make('span', {}, `below zero at step ${sets.at(-1).step}: `, below(sets.at(-1)))];
  return sets.map((one, i) => make('span', {}, key(toneOfEvaluation(i, sets.length), 'solid'), `step ${one.step}: `, below(one), ' below zero'));
}

function lengthLegend(run, set, several) {
  const sign = several ? key(colour(`series-${(run.number % 6) + 1}`), 'solid') : null;
  return make('span', {}, sign, several ? `${plain(run.summary.title)}: ` : '', 'correlation ', make('b', {}, correlation(lengthsOf(run, set)).toFixed(2)));
}
