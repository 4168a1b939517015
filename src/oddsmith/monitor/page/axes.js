// Where a point of a curve lies: by step, time, epoch or tokens; smoothed or not; and where the ticks stand.

/** The quantities that charts can be drawn over. Those but the step are looked up in a curve of the run. */
export const X_AXES = {
  step: { name: 'step', curve: () => null },
  time: { name: 'time', curve: (run) => run.series.axes?.elapsed_s },
  epoch: { name: 'epoch', curve: (run) => run.series.axes?.epoch },
  tokens: { name: 'tokens', curve: (run) => run.series.axes?.num_tokens },
};

/** Whether a run records what an axis shows. */
export function hasAxis(run, kind) {
  return kind === 'step' || Boolean(X_AXES[kind].curve(run)?.steps.length);
}

/** Two functions: from a step of a run to its place on an axis, and back. Between log lines both are straight lines. */
export function axisOf(run, kind) {
  if (kind === 'step') return { place: (step) => step, step: (place) => place };
  const curve = X_AXES[kind].curve(run) ?? { steps: [], values: [] };
  const from = curve.steps[0] > 0 ? [0] : [];
  const steps = [...from, ...curve.steps];
  const places = [...from, ...curve.values.map((value) => value ?? 0)];
  return { place: (step) => between(steps, places, step), step: (place) => between(places, steps, place) };
}

/** The two places of a list in rising order between whose values one lies; the first or the last two beyond its ends. */
export function around(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle; else high = middle;
  }
  return [low, high];
}

function between(xs, ys, x) {
  if (!xs.length) return null;
  if (x <= xs[0]) return ys[0];
  if (x >= xs.at(-1)) return ys.at(-1);
  const [low, high] = around(xs, x);
  return ys[low] + ((ys[high] - ys[low]) * (x - xs[low])) / (xs[high] - xs[low] || 1);
}

const TIMES = [['seconds', 1, 180], ['minutes', 60, 180 * 60], ['hours', 3600, Infinity]];

/** Unit and seconds of the unit in which so many seconds are written on an axis. */
export function timeUnit(seconds) {
  const [unit, size] = TIMES.find(([, , limit]) => seconds < limit);
  return { unit, size };
}

/** An exponential moving average: 0 changes nothing, 0.9 averages about ten values. As TensorBoard's, it is not drawn to zero at the start. */
export function smoothed(values, weight) {
  let sum = 0, total = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

/** The distance of whole ticks, about six of them. */
export function wholeTick(low, high) {
  const wanted = (high - low) / 6;
  if (!(wanted > 1)) return 1;
  const power = 10 ** Math.floor(Math.log10(wanted));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= wanted);
}
