// What Plotly is given: the traces and the layout of a chart.
import { timeUnit, wholeTick, X_AXES } from './axes.js';
import { HELD_OUT, lengthsOf, MANY, reachOf, snapshotsOf, TRAINING } from './curves.js';
import { CATALOGUE, colour, plain } from './dom.js';

const FEW_EVALUATIONS = 5; // up to so many, their margins are drawn as outlines

/** A name with HTML escaped, because Plotly interprets some of it. */
function inPlotly(text) {
  return plain(text).replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}

/** Running mean of nine neighbours and its 95% interval. */
function band(x, y) {
  const middle = [], low = [], high = [];
  for (let i = 0; i < y.length; i += 1) {
    const near = y.slice(Math.max(0, i - 4), i + 5).filter((value) => value !== null);
    const mean = near.reduce((sum, value) => sum + value, 0) / near.length;
    const spread = Math.sqrt(near.reduce((sum, value) => sum + (value - mean) ** 2, 0) / Math.max(near.length - 1, 1));
    const reach = near.length > 2 ? (1.96 * spread) / Math.sqrt(near.length) : 0;
    middle.push(near.length ? mean : null); low.push(near.length ? mean - reach : null); high.push(near.length ? mean + reach : null);
  }
  return { x, middle, low, high };
}

function bandTraces(curve) {
  const { x, low, high } = band(curve.x, curve.y);
  const edge = { mode: 'lines', line: { width: 0 }, hoverinfo: 'skip', showlegend: false, x };
  return [{ ...edge, y: low }, { ...edge, y: high, fill: 'tonexty', fillcolor: faint(curve.tone, '33') }];
}

function faint(tone, share) {
  return tone.startsWith('#') ? `${tone}${share}` : tone;
}

/** The mean's 95% interval over the pairs of each evaluation, as error bars. */
function errorBars(curve) {
  const named = curve.set ? `eval_${curve.set}` : 'eval'; // metrics' names have neither capitals nor spaces
  const deviations = new Map((curve.run.details?.snapshots ?? []).filter((one) => one.set.toLowerCase().replace(/\s+/g, '_') === named)
    .map((one) => [one.step, one.log_odds ? (1.96 * one.log_odds.deviation) / Math.sqrt(one.log_odds.pairs) : 0]));
  if (!deviations.size) return undefined;
  return { type: 'data', array: curve.steps.map((step) => deviations.get(step) ?? 0), thickness: 1.2, width: 3, color: curve.tone };
}

function lineTraces(chart, shown, curves) {
  const traces = [];
  const isCrowded = shown.length > MANY;
  for (const curve of curves) {
    const held = curve.of === HELD_OUT;
    if (chart.band && curve.of === TRAINING && !isCrowded) traces.push(...bandTraces(curve));
    const line = { color: curve.tone, width: held || isCrowded ? 1.2 : 1.8, dash: held ? 'dot' : curve.dash };
    const common = { x: curve.x, name: inPlotly(curve.label), showlegend: false, connectgaps: false, hoverinfo: 'none' };
    if (curve.smooth && !isCrowded) traces.push({ ...common, y: curve.y, mode: 'lines', line: { ...line, color: faint(curve.tone, '55'), width: 1 }, hoverinfo: 'skip' });
    traces.push({
      ...common, y: curve.smooth ?? curve.y, curve, line,
      mode: held && !isCrowded ? 'lines+markers' : 'lines',
      marker: { size: 7, color: curve.tone, symbol: 'circle-open', line: { width: 1.8 } },
      error_y: chart.band && held && !isCrowded ? errorBars(curve) : undefined,
    });
  }
  return traces;
}

/** The margins of the pairs: of a few evaluations an outline each, of many a column of densities each, with the share below zero. */
function marginTraces(run, set) {
  const sets = snapshotsOf(run, set);
  if (!sets.length) return [];
  const edges = sets[0].margins.edges;
  const shares = sets.map((one) => { const all = one.margins.counts.reduce((a, b) => a + b, 0) || 1; return one.margins.counts.map((count) => count / all); });
  const rows = edges.slice(1).map((_, row) => row).filter((row) => sets.some((one) => one.margins.counts[row] > 0));
  const occupied = [edges[Math.max(0, rows[0] - 1)], edges[Math.min(edges.length - 1, rows.at(-1) + 2)]];
  if (sets.length <= FEW_EVALUATIONS) {
    return sets.map((one, i) => ({ occupied, evaluation: one.step, type: 'scatter', mode: 'lines', x: edges, y: [...shares[i], shares[i].at(-1)], name: `step ${one.step}`, showlegend: false,
      line: { shape: 'hv', color: toneOfEvaluation(i, sets.length), width: i === sets.length - 1 ? 2.2 : 1.4 }, fill: i === sets.length - 1 ? 'tozeroy' : undefined, fillcolor: faint(colour('series-2'), '33'),
      hovertemplate: `step ${one.step}, margin from %{x:.2f}: %{y:.0%}<extra></extra>` }));
  }
  const steps = sets.map((one) => String(one.step));
  return [
    { occupied, type: 'heatmap', x: steps, y: edges.slice(1).map((edge, i) => (edge + edges[i]) / 2), z: edges.slice(1).map((_, row) => shares.map((share) => share[row] ?? 0)), showscale: false,
      colorscale: [[0, colour('card')], [1, colour('series-2')]], hovertemplate: 'step %{x}, margin %{y:.2f}: %{z:.0%}<extra></extra>' },
    { type: 'scatter', x: steps, y: sets.map((one) => one.below_zero), yaxis: 'y2', mode: 'lines+markers', name: 'share below zero',
      line: { color: colour('series-1'), width: 2 }, marker: { size: 6 }, showlegend: false, hovertemplate: '%{y:.0%} below zero<extra></extra>' },
  ];
}

/** The colour of one of a few evaluations: the first is quiet, the last stands out. */
export function toneOfEvaluation(i, count) {
  if (i === count - 1) return colour('series-2');
  return i === 0 ? colour('quiet') : colour(`series-${3 + ((i - 1) % 3)}`);
}

/** Whether a run has so few evaluations that their margins are outlines. */
export function areOutlines(run, set) {
  return Boolean(run) && snapshotsOf(run, set).length <= FEW_EVALUATIONS;
}

function lengthTraces(shown, set) {
  return shown.flatMap((run) => {
    const points = lengthsOf(run, set);
    return points.length ? [{ type: 'scatter', mode: 'markers', x: points.map((one) => one[0]), y: points.map((one) => one[1]), title: run.summary.title, name: inPlotly(run.summary.title), showlegend: false,
      marker: { size: 6, opacity: 0.65, color: colour(`series-${(run.number % 6) + 1}`) }, hovertemplate: '%{x} tokens longer, margin %{y:.2f}<extra></extra>' }] : [];
  });
}

/** What each process of a run waits for the slowest one. */
function rankTraces(shown) {
  return shown.flatMap((run) => {
    const shares = run.details?.ranks?.waiting_share ?? [];
    return shares.length ? [{ type: 'bar', x: shares.map((_, rank) => rank), y: shares, title: run.summary.title, name: inPlotly(run.summary.title), showlegend: false,
      marker: { color: colour(`series-${(run.number % 6) + 1}`) }, hovertemplate: 'rank %{x}: %{y:.1%}<extra></extra>' }] : [];
  });
}

/** The traces of a chart; `curves` are those of a chart of lines. */
export function tracesOf(chart, shown, view, curves) {
  if (chart.kind === 'ranks') return rankTraces(shown);
  if (chart.kind === 'histogram') return shown.length ? marginTraces(shown[0], view.set) : [];
  return chart.kind === 'lengths' ? lengthTraces(shown, view.set) : lineTraces(chart, shown, curves);
}

function verticalLine(x, line) {
  return { type: 'line', x0: x, x1: x, yref: 'paper', y0: 0, y1: 1, ...line };
}

/** Thin lines at the incidents of a run; not with several runs, where they would hide the curves. */
function markLines(shown, place) {
  const marks = shown.length === 1 ? shown[0].details?.marks ?? [] : [];
  return marks.map((mark) => verticalLine(place(mark.step), { layer: 'below', line: { color: colour(CATALOGUE.incidents[mark.kind].tone), width: 1 } }));
}

function plainAxis() {
  return { gridcolor: colour('grid'), zerolinecolor: colour('line'), linecolor: colour('line'), tickfont: { color: colour('quiet'), size: 11 }, automargin: true, title: { font: { size: 11, color: colour('quiet') } } };
}

function titled(axis, text) {
  return { ...axis.title, text };
}

/** The layout of a chart of any kind; `isLog` makes the vertical axis of lines logarithmic. */
export function layoutOf(chart, shown, view, curves, place, isLog) {
  const axis = plainAxis();
  const layout = {
    margin: { l: 46, r: 12, t: 8, b: 34 }, paper_bgcolor: colour('card'), plot_bgcolor: colour('card'), hovermode: 'closest', dragmode: false,
    font: { color: colour('text'), family: 'system-ui, sans-serif', size: 12 }, hoverlabel: { bgcolor: colour('card'), bordercolor: colour('line'), font: { color: colour('text') } },
    xaxis: { ...axis, zeroline: false }, yaxis: { ...axis, zeroline: true, fixedrange: true, exponentformat: 'power', title: chart.unit ? titled(axis, chart.unit) : undefined },
    shapes: [], uirevision: 'kept',
  };
  if (chart.range) layout.yaxis.range = [chart.range[0] - 0.03, chart.range[1] + 0.03];
  const margin = titled(axis, 'margin, nats per token');
  if (chart.kind === 'lines') linesLayout(layout, chart, shown, view, curves, place, isLog);
  else if (chart.kind === 'histogram' && areOutlines(shown[0], view.set)) {
    layout.xaxis = { ...layout.xaxis, title: margin, zeroline: true, zerolinewidth: 2, fixedrange: true };
    layout.yaxis = { ...layout.yaxis, title: titled(axis, 'share of the pairs'), tickformat: '.0%', rangemode: 'tozero' };
  } else if (chart.kind === 'histogram') {
    layout.xaxis = { ...layout.xaxis, type: 'category', title: titled(axis, 'step') };
    layout.yaxis.title = margin;
    layout.yaxis2 = { ...axis, overlaying: 'y', side: 'right', range: [0, 1.04], tickmode: 'array', tickvals: [0, 0.5, 1], tickformat: '.0%', showgrid: false, fixedrange: true, title: titled(axis, 'below zero') };
    layout.margin.r = 50;
  } else if (chart.kind === 'ranks') {
    layout.xaxis = { ...layout.xaxis, title: titled(axis, 'rank'), tickformat: 'd', dtick: shown[0]?.details?.ranks?.waiting_share.length > 16 ? undefined : 1, fixedrange: true };
    layout.yaxis.tickformat = '.0%';
    layout.yaxis.range = [0, 1];
  } else {
    layout.xaxis = { ...layout.xaxis, title: titled(axis, 'chosen longer by, tokens'), zeroline: true, fixedrange: true };
    layout.yaxis.title = margin;
  }
  return layout;
}

function linesLayout(layout, chart, shown, view, curves, place, isLog) {
  const axis = layout.xaxis;
  const reach = view.range ?? reachOf(curves) ?? [0, 1];
  layout.hovermode = shown.length > MANY ? 'closest' : 'x';
  layout.dragmode = 'zoom';
  layout.yaxis.zeroline = chart.zero;
  layout.xaxis = { ...axis, title: titled(axis, X_AXES[view.x].name), showspikes: true, spikemode: 'across', spikesnap: 'hovered data', spikethickness: 1, spikedash: 'solid', spikecolor: colour('quiet') };
  if (view.x === 'step' || view.x === 'tokens') Object.assign(layout.xaxis, { tickmode: 'linear', tick0: 0, dtick: wholeTick(...reach) });
  if (view.x === 'tokens') layout.xaxis.tickformat = '.3~s';
  if (view.x === 'time') timeTicks(layout.xaxis, reach);
  if (view.range) layout.xaxis.range = [...view.range];
  if (isLog) { layout.yaxis.type = 'log'; layout.yaxis.tickformat = '~g'; delete layout.yaxis.range; }
  layout.shapes = markLines(shown, place);
  if (view.step !== null && place(view.step) !== null) layout.shapes.push(verticalLine(place(view.step), { line: { color: colour('act'), width: 2 } }));
}

/** Ticks at whole minutes or hours; the places themselves are seconds. */
function timeTicks(axis, reach) {
  const { unit, size } = timeUnit(reach[1] - reach[0]);
  const tick = wholeTick(reach[0] / size, reach[1] / size);
  const first = Math.ceil(reach[0] / size / tick) * tick;
  const ticks = Array.from({ length: Math.floor((reach[1] / size - first) / tick) + 1 }, (_, i) => first + i * tick);
  Object.assign(axis, { tickmode: 'array', tickvals: ticks.map((one) => one * size), ticktext: ticks.map(String), title: { ...axis.title, text: `time, ${unit}` } });
}
