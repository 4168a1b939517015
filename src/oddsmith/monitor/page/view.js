// What the page shows of the runs, and how: kept in the address, so that a link or a reload shows the same.
import { X_AXES } from './axes.js';

/**
 * The view of an address without one. `range` is in places on the axis `x`, `step` a step that was jumped to, `stepOf`
 * the id of its run, `sort` the column by which the table is sorted, with - in front from high to low, `columns` those
 * that were chosen.
 */
function emptyView() {
  return { runs: null, table: false, find: '', sort: null, columns: null, x: 'step', smooth: 0, log: new Set(), range: null, step: null, stepOf: null, set: null };
}

/** The view in the part of an address behind its #. What is not understood is left out. */
export function viewOf(hash) {
  const given = new URLSearchParams(hash.slice(1));
  const view = emptyView();
  const list = (name) => given.get(name)?.split(',').filter(Boolean) ?? null;
  view.runs = list('runs');
  if (Object.hasOwn(X_AXES, given.get('x'))) view.x = given.get('x');
  const smooth = Number(given.get('smooth'));
  if (smooth > 0 && smooth < 1) view.smooth = smooth;
  view.log = new Set(list('log') ?? []);
  const range = (list('range') ?? []).map(Number);
  if (range.length === 2 && range.every(Number.isFinite) && range[0] < range[1]) view.range = range;
  view.set = given.get('set');
  view.table = given.has('table');
  view.find = (given.get('find') ?? '').slice(0, 500);
  view.sort = given.get('sort');
  view.columns = list('columns');
  return view;
}

/** The part of an address behind its # that shows a view again. */
export function hashOf(view) {
  const said = new URLSearchParams();
  if (view.runs) said.set('runs', view.runs.join(','));
  if (view.x !== 'step') said.set('x', view.x);
  if (view.smooth > 0) said.set('smooth', view.smooth);
  if (view.log.size) said.set('log', [...view.log].join(','));
  if (view.range) said.set('range', view.range.map((end) => Number(end.toPrecision(8))).join(','));
  if (view.set) said.set('set', view.set);
  if (view.table) said.set('table', '');
  if (view.find) said.set('find', view.find);
  if (view.sort) said.set('sort', view.sort);
  if (view.columns) said.set('columns', view.columns.join(','));
  return `#${said}`;
}
