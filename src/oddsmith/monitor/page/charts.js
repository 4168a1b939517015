// How Plotly draws the charts that the catalogue names.
import { CATALOGUE, colour, figure, make, plain } from './dom.js';

const TRAINING = 'training';
const HELD_OUT = 'held out';

const DASHES = ['solid', 'dash', 'dot'];
const PLOT = { displayModeBar: false, responsive: true, scrollZoom: false };

/** The curves of a chart for the runs that are shown: those of one run are coloured by line, those of several by run. */
function curves(chart, shown) {
  const found = [];
  for (const run of shown) {
    chart.lines.forEach((line, number) => {
      const factor = line.times_beta ? run.summary.beta : 1; // so that the parts add up to the loss
      if (!factor) return;
      const tone = colour(`series-${((shown.length > 1 ? run.number : number) % 6) + 1}`);
      const dash = shown.length > 1 ? DASHES[number % 3] : 'solid';
      const base = shown.length > 1 ? `${run.summary.name}: ${line.name}` : line.name;
      const training = run.series.training[line.metric];
      if (training) found.push({ ...points(training, factor), base, label: base, tone, dash, of: TRAINING });
      for (const [set, metrics] of Object.entries(run.series.held_out)) {
        const held = metrics[line.metric];
        if (held) found.push({ ...points(held, factor), base, label: `${base} (${HELD_OUT}${set ? ` ${set}` : ''})`, tone, dash, of: HELD_OUT, set, run });
      }
    });
  }
  return found;
}

/** A name with HTML escaped, because Plotly interprets some of it. */
function inPlotly(text) {
  return plain(text).replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}

function points(series, factor) {
  return { x: series.steps, y: factor === 1 ? series.values : series.values.map((value) => (value === null ? null : value * factor)) };
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
  const fill = curve.tone.startsWith('#') ? `${curve.tone}33` : curve.tone;
  const edge = { mode: 'lines', line: { width: 0 }, hoverinfo: 'skip', showlegend: false, x };
  return [{ ...edge, y: low }, { ...edge, y: high, fill: 'tonexty', fillcolor: fill }];
}

/** The mean's 95% interval over the pairs of each evaluation, as error bars. */
function errorBars(curve) {
  const named = curve.set ? `eval_${curve.set}` : 'eval'; // metrics' names have neither capitals nor spaces
  const deviations = new Map((curve.run.details?.snapshots ?? []).filter((one) => one.set.toLowerCase().replace(/\s+/g, '_') === named)
    .map((one) => [one.step, one.log_odds ? (1.96 * one.log_odds.deviation) / Math.sqrt(one.log_odds.pairs) : 0]));
  if (!deviations.size) return undefined;
  return { type: 'data', array: curve.x.map((step) => deviations.get(step) ?? 0), thickness: 1.2, width: 3, color: curve.tone };
}

function lineTraces(chart, shown) {
  const traces = [];
  for (const curve of curves(chart, shown)) {
    if (chart.band && curve.of === TRAINING) traces.push(...bandTraces(curve));
    const held = curve.of === HELD_OUT;
    traces.push({
      x: curve.x, y: curve.y, name: inPlotly(curve.label), showlegend: false, connectgaps: false,
      mode: held ? 'lines+markers' : 'lines',
      line: { color: curve.tone, width: held ? 1.2 : 1.8, dash: held && shown.length === 1 ? 'dot' : curve.dash },
      marker: { size: 7, color: curve.tone, symbol: held ? 'circle-open' : 'circle', line: { width: 1.8 } },
      error_y: chart.band && held ? errorBars(curve) : undefined,
      hovertemplate: '%{y:.4g}<extra>%{fullData.name}</extra>',
    });
  }
  return traces;
}

function snapshotsOf(run, set) {
  return (run.details?.snapshots ?? []).filter((one) => one.set === set && one.margins?.counts?.length);
}

/** Margins of the pairs at every evaluation: a column of densities each, and the share below zero. */
function histogramTraces(run, set) {
  const sets = snapshotsOf(run, set);
  if (!sets.length) return [];
  const edges = sets[0].margins.edges;
  const middles = edges.slice(1).map((edge, i) => (edge + edges[i]) / 2);
  const shares = sets.map((one) => { const all = one.margins.counts.reduce((a, b) => a + b, 0) || 1; return one.margins.counts.map((count) => count / all); });
  const used = middles.filter((_, row) => sets.some((one) => one.margins.counts[row] > 0));
  const z = middles.map((_, row) => shares.map((share) => share[row] ?? 0));
  const step = edges[1] - edges[0];
  return [
    { occupied: [used[0] - step, used.at(-1) + step], type: 'heatmap', x: sets.map((one) => String(one.step)), y: middles, z, showscale: false,
      colorscale: [[0, colour('card')], [1, colour('series-2')]], hovertemplate: 'step %{x}, margin %{y:.2f}: %{z:.0%}<extra></extra>' },
    { x: sets.map((one) => String(one.step)), y: sets.map((one) => one.below_zero), yaxis: 'y2', mode: 'lines+markers', name: 'share below zero',
      line: { color: colour('series-1'), width: 2 }, marker: { size: 6 }, showlegend: false, hovertemplate: '%{y:.0%} below zero<extra></extra>' },
  ];
}

function lengthsOf(run, set) {
  return run.details?.pairs?.find((one) => one.set === set)?.lengths ?? [];
}

function lengthTraces(shown, set) {
  return shown.flatMap((run) => {
    const points = lengthsOf(run, set);
    return points.length ? [{ type: 'scatter', mode: 'markers', x: points.map((one) => one[0]), y: points.map((one) => one[1]), name: inPlotly(run.summary.name), showlegend: false,
      marker: { size: 6, opacity: 0.65, color: colour(`series-${(run.number % 6) + 1}`) }, hovertemplate: '%{x} tokens longer, margin %{y:.2f}<extra></extra>' }] : [];
  });
}

/** What each process of a run waits for the slowest one. */
function rankTraces(shown) {
  return shown.flatMap((run) => {
    const shares = run.details?.ranks?.waiting_share ?? [];
    return shares.length ? [{ type: 'bar', x: shares.map((_, rank) => rank), y: shares, name: inPlotly(run.summary.name), showlegend: false,
      marker: { color: colour(`series-${(run.number % 6) + 1}`) }, hovertemplate: 'rank %{x}: %{y:.1%}<extra></extra>' }] : [];
  });
}

function tracesOf(chart, shown, set) {
  if (chart.kind === 'ranks') return rankTraces(shown);
  if (chart.kind === 'histogram') return shown.length ? histogramTraces(shown[0], set) : [];
  return chart.kind === 'lengths' ? lengthTraces(shown, set) : lineTraces(chart, shown);
}

/** Thin lines at the incidents of a run; not with several runs, where they would hide the curves. */
function markLines(shown) {
  const marks = shown.length === 1 ? shown[0].details?.marks ?? [] : [];
  return marks.map((mark) => { const { tone } = CATALOGUE.incidents[mark.kind];
    return { type: 'line', x0: mark.step, x1: mark.step, yref: 'paper', y0: 0, y1: 1, layer: 'below', line: { color: colour(tone), width: 1, dash: tone === 'quiet' ? 'dash' : 'solid' } }; });
}

function layoutOf(chart, shown, view) {
  const axis = { gridcolor: colour('grid'), zerolinecolor: colour('line'), linecolor: colour('line'), tickfont: { color: colour('quiet'), size: 11 }, automargin: true, title: { font: { size: 11, color: colour('quiet') } } };
  const steps = chart.kind === 'lines';
  const layout = {
    margin: { l: 46, r: 12, t: 8, b: 34 }, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', hovermode: steps ? 'x unified' : 'closest', dragmode: steps ? 'zoom' : false,
    font: { color: colour('text'), family: 'system-ui, sans-serif', size: 12 }, hoverlabel: { bgcolor: colour('card'), bordercolor: colour('line'), font: { color: colour('text') } },
    xaxis: { ...axis, zeroline: false, title: { ...axis.title, text: chart.kind === 'lengths' ? 'chosen longer by, tokens' : 'step' } },
    yaxis: { ...axis, zeroline: chart.zero || !steps, fixedrange: true, exponentformat: 'power', title: chart.unit ? { ...axis.title, text: chart.unit } : undefined },
    shapes: steps ? markLines(shown) : [], uirevision: 'kept',
  };
  if (chart.range) layout.yaxis.range = [chart.range[0] - 0.03, chart.range[1] + 0.03];
  if (steps && view.range) layout.xaxis.range = [...view.range];
  if (steps && view.step !== null) layout.shapes.push({ type: 'line', x0: view.step, x1: view.step, yref: 'paper', y0: 0, y1: 1, line: { color: colour('act'), width: 1.5, dash: 'dot' } });
  if (chart.kind === 'histogram') {
    layout.xaxis.type = 'category';
    layout.yaxis.title = { ...axis.title, text: 'margin, nats per token' };
    layout.yaxis2 = { ...axis, overlaying: 'y', side: 'right', range: [0, 1.04], tickmode: 'array', tickvals: [0, 0.5, 1], tickformat: '.0%', showgrid: false, fixedrange: true, title: { ...axis.title, text: 'below zero' } };
    layout.margin.r = 50;
  }
  if (chart.kind === 'ranks') { layout.xaxis = { ...layout.xaxis, title: { ...axis.title, text: 'rank' }, tickformat: 'd', dtick: shown[0]?.details?.ranks?.waiting_share.length > 16 ? undefined : 1, fixedrange: true }; layout.yaxis.tickformat = '.0%'; layout.yaxis.range = [0, 1]; }
  if (chart.kind === 'lengths') { layout.yaxis.title = { ...axis.title, text: 'margin, nats per token' }; layout.xaxis.zeroline = true; layout.xaxis.fixedrange = true; }
  return layout;
}

/** The figure of a chart, empty; `onRange` gets the range that was dragged over, or null for the whole. */
export function chartFigure(chart, onRange) {
  const plot = make('div', { class: 'plot', role: 'img', 'aria-labelledby': `${chart.id}-title ${chart.id}-now` });
  const now = make('p', { class: 'now', id: `${chart.id}-now` });
  const caption = make('figcaption', {}, make('h3', { id: `${chart.id}-title` }, chart.title), make('p', { class: 'watch-for' }, chart.watch));
  const element = make('figure', { id: `chart-${chart.id}`, hidden: true }, caption, plot, now);
  let listening = false;
  const draw = (shown, view) => {
    const traces = tracesOf(chart, shown, view.set);
    element.hidden = !traces.length;
    if (!traces.length) return;
    const layout = layoutOf(chart, shown, view);
    if (traces[0].occupied) layout.yaxis.range = traces[0].occupied;
    window.Plotly.react(plot, traces, layout, PLOT);
    if (!listening) {
      listening = true;
      plot.on('plotly_relayout', (change) => {
        if (change['xaxis.range[0]'] !== undefined) onRange([change['xaxis.range[0]'], change['xaxis.range[1]']]);
        else if (change['xaxis.autorange']) onRange(null);
      });
    }
    now.replaceChildren(...legend(chart, shown, view.set));
  };
  return { element, draw };
}

/** Legend and latest values as text, which a screen reader reads in place of the picture. */
function legend(chart, shown, set) {
  if (chart.kind === 'ranks') return shown.filter((run) => run.summary.waiting).map(({ summary }) => make('span', {}, shown.length > 1 ? `${plain(summary.name)}: ` : '', 'mean ', make('b', {}, `${(100 * summary.waiting.mean).toFixed(1)}%`), `, most for rank ${summary.waiting.slowest}`));
  if (chart.kind === 'lengths') return shown.filter((run) => lengthsOf(run, set).length > 2).map((run) => lengthLegend(run, set, shown.length > 1));
  if (chart.kind === 'histogram') {
    const last = snapshotsOf(shown[0], set).at(-1);
    return last ? [make('span', {}, 'below zero at step ', make('b', {}, `${last.step}: ${Math.round(100 * last.below_zero)}%`))] : [];
  }
  const found = curves(chart, shown);
  const last = (curve) => figure(curve.y.findLast((one) => one !== null));
  return found.filter((curve) => curve.of === TRAINING || !found.some((other) => other.base === curve.base && other.of === TRAINING)).map((curve) => {
    const key = make('i', { class: `key ${curve.dash === 'solid' ? '' : curve.dash}` });
    key.style.borderColor = curve.tone;
    const held = found.filter((other) => other !== curve && other.base === curve.base).map((other) => `, ${HELD_OUT}${other.set ? ` ${plain(other.set)}` : ''} ${last(other)}`);
    return make('span', {}, key, `${plain(curve.base)} `, make('b', {}, last(curve)), ...held);
  });
}

function lengthLegend(run, set, several) {
  const key = make('i', { class: 'key' });
  key.style.borderColor = colour(`series-${(run.number % 6) + 1}`);
  return make('span', {}, several ? key : null, several ? `${plain(run.summary.name)}: ` : '', 'correlation ', make('b', {}, correlation(lengthsOf(run, set)).toFixed(2)));
}

/** Pearson's, of the two columns of a list of points; 0 where one of them is constant. */
function correlation(points) {
  const mean = (column) => points.reduce((sum, one) => sum + one[column], 0) / points.length;
  const [x, y] = [mean(0), mean(1)];
  const sum = (term) => points.reduce((all, one) => all + term(one[0] - x, one[1] - y), 0);
  const spread = Math.sqrt(sum((a) => a * a) * sum((_, b) => b * b));
  return spread > 0 ? sum((a, b) => a * b) / spread : 0;
}
