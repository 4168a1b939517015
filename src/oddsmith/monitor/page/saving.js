// Saves a chart as a picture or as a table.
import { axisOf, X_AXES } from './axes.js';
import { colour, make, plain } from './dom.js';

const SIZE = { width: 900, height: 480, scale: 2 };

function download(name, address) {
  const link = make('a', { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

/** Save what a plot shows as a PNG file, with its title and a legend. */
export async function savePicture(chart, plot) {
  const layout = { ...plot.layout, paper_bgcolor: colour('card'), plot_bgcolor: colour('card'), title: { text: chart.title, x: 0.02, font: { size: 16 } }, margin: { l: 60, r: 20, t: 50, b: 50 },
    showlegend: true, legend: { orientation: 'h', y: -0.18 }, ...SIZE };
  const data = plot.data.map((trace) => ({ ...trace, curve: undefined, showlegend: Boolean(trace.name) && trace.hoverinfo !== 'skip' && plot.data.length < 40 }));
  download(`${chart.id}.png`, await window.Plotly.toImage({ data, layout }, { format: 'png', ...SIZE }));
}

/** A cell of a CSV file. Text that a spreadsheet would take for a formula begins with an apostrophe. */
function cell(value) {
  if (value === null || value === undefined) return '';
  if (typeof value === 'number') return String(value);
  const text = plain(value).replace(/^[=+\-@\t]/, "'$&");
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

const COLUMNS = { ranks: ['run', 'rank', 'waiting_share'], lengths: ['run', 'chosen_longer_by_tokens', 'margin'] };

/** Of each evaluation the share of the pairs with a margin in each bin, which is named by its middle; of many evaluations also the share below zero. */
function rowsOfMargins(data) {
  const rows = [['what', 'step', 'margin', 'share']];
  for (const trace of data) {
    if (trace.z) trace.x.forEach((step, column) => trace.y.forEach((margin, row) => rows.push(['margins', Number(step), margin, trace.z[row][column]])));
    else if (trace.evaluation === undefined) trace.x.forEach((step, i) => rows.push(['below_zero', Number(step), null, trace.y[i]]));
    else trace.x.slice(1).forEach((edge, i) => rows.push(['margins', trace.evaluation, (trace.x[i] + edge) / 2, trace.y[i]]));
  }
  return rows;
}

/** The rows of a chart's table: of curves a row for each step of a run, of other charts one for each point. */
function rowsOf(chart, plot, view) {
  if (chart.kind === 'histogram') return rowsOfMargins(plot.data);
  if (chart.kind in COLUMNS) return [COLUMNS[chart.kind], ...plot.data.flatMap((trace) => trace.x.map((x, i) => [trace.title, x, trace.y[i]]))];
  const curves = plot.data.map((trace) => trace.curve).filter(Boolean);
  const axes = Object.keys(X_AXES).filter((kind) => kind === 'step' || kind === view.x);
  const rows = [['run', 'line', 'held_out', ...axes, 'value', ...(view.smooth > 0 ? ['smoothed'] : [])]];
  for (const curve of curves) {
    const places = axes.map((kind) => curve.steps.map(axisOf(curve.run, kind).place));
    curve.steps.forEach((_, i) => rows.push([curve.run.summary.title, curve.line, curve.set === undefined ? '' : curve.set || 'eval', ...places.map((one) => one[i]), curve.y[i], ...(view.smooth > 0 ? [curve.smooth?.[i] ?? null] : [])]));
  }
  return rows;
}

/** Save the points that a plot shows as a CSV file. */
export function saveData(chart, plot, view) {
  const text = rowsOf(chart, plot, view).map((row) => row.map(cell).join(',')).join('\r\n');
  const address = URL.createObjectURL(new Blob([`${text}\r\n`], { type: 'text/csv' }));
  download(`${chart.id}.csv`, address);
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
