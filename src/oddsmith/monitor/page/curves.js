// The curves of a chart: which points of which runs, and in which colour and dash.
import { around, axisOf, hasAxis, smoothed } from './axes.js';
import { colour } from './dom.js';

export const TRAINING = 'training';
export const HELD_OUT = 'held out';
export const MANY = 8; // runs; of more, curves are thinner and are named one by one

const DASHES = ['solid', 'dash', 'longdashdot']; // of the lines of a chart with several runs; dots are for held-out pairs

/** The curves of a chart for the runs that are shown: those of one run are coloured by line, those of several by run. */
export function curvesOf(chart, shown, view) {
  const found = [];
  for (const run of shown.filter((one) => hasAxis(one, view.x))) {
    const axis = axisOf(run, view.x);
    chart.lines.forEach((line, number) => {
      const factor = line.times_beta ? run.summary.beta : 1; // so that the parts add up to the loss
      if (!factor) return;
      const several = shown.length > 1;
      const tone = colour(`series-${((several ? run.number : number) % 6) + 1}`);
      const base = several ? `${run.summary.title}: ${line.name}` : line.name;
      const common = { base, tone, run, line: line.name, dash: several ? DASHES[number % 3] : 'solid' };
      const training = run.series.training[line.metric];
      if (training) found.push({ ...common, ...points(training, factor, axis), label: base, of: TRAINING });
      for (const [set, metrics] of Object.entries(run.series.held_out)) {
        const held = metrics[line.metric];
        if (held) found.push({ ...common, ...points(held, factor, axis), label: `${base} (${HELD_OUT}${set ? ` ${set}` : ''})`, of: HELD_OUT, set });
      }
    });
  }
  if (view.smooth > 0) for (const curve of found) if (curve.of === TRAINING) curve.smooth = smoothed(curve.y, view.smooth);
  return found;
}

function points(series, factor, axis) {
  const y = factor === 1 ? series.values : series.values.map((value) => (value === null ? null : value * factor));
  return { steps: series.steps, x: series.steps.map(axis.place), y };
}

/** Place of the value of a list in rising order that is nearest to one. */
export function nearest(xs, x) {
  const [low, high] = around(xs, x);
  return Math.abs((xs[high] ?? Infinity) - x) < Math.abs(xs[low] - x) ? high : low;
}

/** Lowest and highest place of the curves; null without any. */
export function reachOf(curves) {
  const ends = curves.filter((curve) => curve.x.length).flatMap((curve) => [curve.x[0], curve.x.at(-1)]);
  return ends.length ? [Math.min(...ends), Math.max(...ends)] : null;
}

/** Whether a logarithmic axis can show all values of the curves. */
export function arePositive(curves) {
  return curves.some((curve) => curve.y.length) && curves.every((curve) => curve.y.every((value) => value === null || value > 0));
}

export function snapshotsOf(run, set) {
  return (run.details?.snapshots ?? []).filter((one) => one.set === set && one.margins?.counts?.length);
}

export function lengthsOf(run, set) {
  return run.details?.pairs?.find((one) => one.set === set)?.lengths ?? [];
}

/** Pearson's, of the two columns of a list of points; 0 where one of them is constant. */
export function correlation(pairs) {
  const mean = (column) => pairs.reduce((sum, one) => sum + one[column], 0) / pairs.length;
  const [x, y] = [mean(0), mean(1)];
  const sum = (term) => pairs.reduce((all, one) => all + term(one[0] - x, one[1] - y), 0);
  const spread = Math.sqrt(sum((a) => a * a) * sum((_, b) => b * b));
  return spread > 0 ? sum((a, b) => a * b) / spread : 0;
}
