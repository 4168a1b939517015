// Everything but the charts: the list of runs, the verdict, pairs, answers, settings.
import { MANY } from './curves.js';
import { CATALOGUE, colour, figure, make, plain } from './dom.js';
import { editButton, stateOf } from './table.js';

const WORDS = { healthy: 'Healthy', 'cannot tell': 'Cannot tell', watch: 'Worth watching', act: 'Act on it' };
const SEVERITY = Object.keys(WORDS);

/** The list of runs, those that are `found` among `runs`; `onToggle(id)` shows or hides one. */
export function drawRuns(place, runs, found, shown, onToggle) {
  const focused = document.activeElement?.closest('#runs input')?.value;
  const items = found.map((run) => {
    const index = runs.indexOf(run);
    const box = make('input', { type: 'checkbox', value: run.id, onchange: () => onToggle(run.id) });
    box.checked = shown.includes(run.id);
    const swatch = make('i', { class: 'swatch' });
    swatch.style.background = shown.length > 1 && box.checked ? colour(`series-${(shown.indexOf(run.id) % 6) + 1}`) : 'transparent';
    return make('li', {}, make('label', { title: index < 9 ? `key ${index + 1}` : null }, box,
      make('span', { class: 'name' }, box.checked && shown.length > 1 ? swatch : null, plain(run.title)), make('span', { class: 'state' }, stateOf(run))));
  });
  place.replaceChildren(make('ul', {}, ...items));
  if (focused) place.querySelector(`input[value="${CSS.escape(focused)}"]`)?.focus();
}

/**
 * The verdict of every run that is shown, with its findings, but for many runs; `onJump(step, run)` goes to
 * where one begins, `onEdit(run)` asks for a name and a note (null where they cannot be kept).
 */
export function drawVerdict(place, shown, onJump, onEdit) {
  if (shown.length > MANY) place.replaceChildren(make('div', { class: 'banner' }, make('h2', { id: 'verdict-title' }, `${shown.length} runs`), make('p', {}, 'Their verdicts, settings and latest figures are in the table of all runs.')));
  else place.replaceChildren(...shown.map((run, index) => banner(run, index === 0, (step) => onJump(step, run), onEdit)));
}

function banner(run, isFirst, onJump, onEdit) {
  const findings = run.details?.findings ?? [];
  const empty = !Object.keys(run.series.training).length && !Object.keys(run.series.held_out).length;
  const verdict = findings.length ? SEVERITY[Math.max(...findings.map((one) => SEVERITY.indexOf(one.verdict)))] : 'cannot tell';
  const words = run.summary.problem ? 'Not readable' : run.summary.state === 'reading' ? 'Reading the event log' : empty ? 'Nothing logged yet' : WORDS[verdict];
  const bad = findings.filter((one) => one.verdict !== 'healthy');
  const facts = [plain(run.summary.model), stateOf(run.summary), Number.isFinite(run.summary.checkpoint) ? `last checkpoint at step ${run.summary.checkpoint}` : '', run.summary.skipped ? `${run.summary.skipped} unreadable lines skipped` : ''].filter(Boolean).join(' · ');
  const bar = run.summary.max_steps > 0 ? make('progress', { max: run.summary.max_steps, value: Math.min(run.summary.step, run.summary.max_steps), 'aria-label': `steps done of ${plain(run.summary.title)}` }) : null;
  return make('div', { class: `banner ${empty || run.summary.problem ? '' : verdict}` },
    make('div', { class: 'title' }, make('h2', isFirst ? { id: 'verdict-title' } : {}, `${plain(run.summary.title)}: ${words}`), onEdit ? editButton(run.summary, onEdit) : null),
    run.summary.note ? make('p', { class: 'text note' }, plain(run.summary.note)) : null,
    make('p', { class: 'facts' }, run.summary.problem ? plain(run.summary.problem) : facts), bar,
    incidents(run, onJump),
    bad.length ? make('ul', { class: 'findings' }, ...bad.map((one) => finding(one, onJump))) : null,
    known(run, findings.filter((one) => one.verdict === 'healthy'), bad.length > 0));
}

/** What speaks for a run, with the figures of the diagnosis: how "healthy" is known. */
function known(run, good, isBeside) {
  if (!good.length) return null;
  const { log_lines: lines, evaluations } = run.details.seen;
  const count = (number, noun) => `${number.toLocaleString('en')} ${noun}${number === 1 ? '' : 's'}`;
  const from = `From ${count(lines, 'log line')} and ${count(evaluations, 'evaluation')}${isBeside ? '; this is well' : ''}:`;
  return make('div', { class: 'known' }, make('p', {}, from), make('ul', {}, ...good.map((one) =>
    make('li', {}, make('b', {}, plain(one.rule).replaceAll('_', ' ')), `: ${plain(one.metric)}: ${plain(one.evidence)} – ${plain(one.meaning)}.`))));
}

/** The incidents of a run, counted; opened, the last ones as a list. */
function incidents(run, onJump) {
  const counts = Object.entries(run.summary.happened ?? {});
  if (!counts.length) return null;
  const words = counts.map(([kind, count]) => {
    const { one, several, tone } = CATALOGUE.incidents[kind];
    const key = make('i', { class: `mark ${tone}` });
    key.style.borderColor = colour(tone);
    return make('span', {}, key, `${count} ${count === 1 ? one : several}`);
  });
  const marks = [...(run.details?.marks ?? [])].reverse();
  const list = make('details', { open: opened.has(run.summary.id), ontoggle: (event) => opened[event.target.open ? 'add' : 'delete'](run.summary.id) },
    make('summary', {}, ...words), make('ul', {}, ...marks.map((mark) => make('li', {},
      make('button', { type: 'button', onclick: () => onJump(mark.step) }, `Step ${mark.step}`), ` ${plain(mark.text)}`))));
  return make('div', { class: 'happened' }, list);
}

const opened = new Set();

function finding(one, onJump) {
  const jump = Number.isFinite(one.step) ? make('button', { type: 'button', 'data-jump': one.step, onclick: () => onJump(one.step) }, `Show step ${one.step}`) : null;
  const word = make('span', { class: `word ${SEVERITY.includes(one.verdict) ? one.verdict : ''}` }, plain(one.verdict));
  return make('li', {}, make('div', { class: 'head' }, word, make('span', { class: 'rule' }, plain(one.rule).replaceAll('_', ' ')), jump),
    make('p', {}, plain(one.evidence)), make('p', {}, plain(one.meaning)), one.change ? make('p', { class: 'change' }, plain(one.change)) : null);
}

const PAIR_KINDS = { worst: 'Worst', flipped: 'Flipped', forgotten: 'Forgotten' };
const EXPLAINED = {
  worst: 'The held-out pairs whose rejected answer the model prefers most clearly. Read them: the label may be wrong.',
  flipped: 'Pairs that the model ordered wrongly at first and rightly now.',
  forgotten: 'Pairs that it ordered rightly at first and wrongly now.',
};
let kind = 'worst';

/** The held-out sets with pairs or answers. */
export function setsOf(shown) {
  return [...new Set(shown.flatMap((run) => ['pairs', 'snapshots', 'samples'].flatMap((what) => (run.details?.[what] ?? []).map((one) => one.set))))];
}

/** Buttons for the held-out set that margins, lengths, pairs and answers are shown of; `onChoice(set)` takes another. */
export function drawSets(place, sets, chosen, onChoice) {
  place.hidden = sets.length < 2;
  const held = place.contains(document.activeElement);
  place.replaceChildren(make('span', { id: 'sets-name' }, 'Margins, lengths, pairs and answers of '), make('span', { class: 'tabs', role: 'group', 'aria-labelledby': 'sets-name' }, ...sets.map((set) =>
    make('button', { type: 'button', 'aria-pressed': String(set === chosen), onclick: () => onChoice(set) }, plain(set).replace(/^eval_(?=.)/, '')))));
  if (held) place.querySelector('[aria-pressed="true"]')?.focus();
}

/** Returns a function that drops from a text the first and last lines that all texts share, as a chat template writes them. */
function ownLines(texts) {
  const all = [...new Set(texts)].map((text) => String(text ?? '').split('\n'));
  const shortest = Math.min(...all.map((lines) => lines.length));
  const common = (at) => { let count = 0; while (count < shortest - 1 && all.every((lines) => lines.at(at(count)) === all[0].at(at(count)))) count += 1; return count; };
  if (all.length < 2) return (text) => text;
  const head = common((i) => i);
  const tail = Math.min(common((i) => -1 - i), shortest - 1 - head);
  return (text) => { const lines = text.split('\n'); return lines.slice(head, lines.length - tail).join('\n'); };
}

/** A sentence about what the colours of tokens compare with. */
function comparison(inspected) {
  const { step, first_step: first, compared_with: then } = inspected;
  if (then === 0) return step === 0 ? ' Nothing has been trained yet.' : ' Green tokens are likelier than before the training, red and underlined ones less likely.';
  if (then === step) return ' Colours come with the next evaluation; eval_on_start compares with the untrained model.';
  return Number.isFinite(then) ? ` Green tokens are likelier than at the first evaluation (step ${first}), red and underlined ones less likely; eval_on_start compares with the untrained model.` : '';
}

/** The pair inspector of the first run that has one. */
export function drawPairs(place, shown, set) {
  const of = (run) => run.details?.pairs?.find((one) => one.set === set);
  const run = shown.find(of);
  place.hidden = !run;
  if (!run) return;
  const inspected = of(run);
  const buttons = Object.entries(PAIR_KINDS).map(([name, words]) => make('button', { type: 'button', 'aria-pressed': String(name === kind),
    onclick: () => { kind = name; drawPairs(place, shown, set); place.querySelector(`[aria-pressed="true"]`).focus(); } }, `${words} (${(inspected.inspected[name] ?? []).length})`));
  const asked = ownLines(Object.values(inspected.inspected).flat().map((one) => one.prompt));
  const rows = (inspected.inspected[kind] ?? []).map((one) => pair(one, asked(one.prompt)));
  place.replaceChildren(make('div', { class: 'card' }, make('h2', { id: 'pairs-title' }, `Held-out pairs at step ${inspected.step}`),
    make('div', { class: 'tabs' }, ...buttons), make('p', { class: 'watch-for' }, EXPLAINED[kind], comparison(inspected)),
    ...(rows.length ? rows : [make('p', { class: 'empty' }, 'None.')])));
}

function pair(one, prompt) {
  const moved = one.before === null || one.before === undefined ? '' : ` (${figure(one.before)} at first)`;
  return make('article', { class: 'pair' }, make('h3', {}, `Pair ${one.row + 1}: margin ${figure(one.margin)}${moved}`),
    make('div', { class: 'prompt' }, make('h4', {}, 'Prompt'), make('p', { class: 'text' }, plain(prompt))),
    make('div', { class: 'sides' }, ...['chosen', 'rejected'].map((side) => make('div', {}, make('h4', {}, side === 'chosen' ? 'Chosen' : 'Rejected'), tokens(one[side])))));
}

/** An answer, each token coloured by the change of its log-probability. */
function tokens(side) {
  const text = make('p', { class: 'text' });
  (side?.tokens ?? []).forEach((token, i, all) => {
    const change = side.change?.[i];
    const isEnd = token === '' && i === all.length - 1; // the end of the turn has no text
    const mark = make('span', { class: 'token', title: Number.isFinite(change) ? `${change > 0 ? '+' : ''}${figure(change)} nats` : null }, isEnd ? ' ⟨end⟩' : plain(token));
    if (isEnd) mark.classList.add('quiet');
    if (Number.isFinite(change) && Math.abs(change) > 0.1) {
      mark.classList.add(change > 0 ? 'more' : 'less');
      mark.style.setProperty('--strength', Math.min(0.45, Math.abs(change) / 6).toFixed(2));
    }
    text.append(mark);
  });
  const hidden = side?.tokens_not_shown ?? 0;
  if (hidden) text.append(make('span', { class: 'cut' }, ` ⟨${hidden} more tokens⟩`));
  else if (side?.is_cut) text.append(make('span', { class: 'cut', title: 'max_length ended the answer here' }, ' ⟨cut by max_length⟩'));
  return text;
}

/** Answers to fixed prompts at the first and the last evaluation; step 0 is the untrained model. */
export function drawSamples(place, shown, set) {
  const of = (run) => run.details?.samples?.find((one) => one.set === set);
  const run = shown.find(of);
  place.hidden = !run;
  if (!run) return;
  const { first, last } = of(run);
  const named = (step) => (step === 0 ? 'Base model (step 0)' : `Step ${step}`);
  const asked = ownLines((last.answers ?? []).map((answer) => answer.Prompt));
  const rows = (last.answers ?? []).map((answer, i) => make('article', { class: 'pair' },
    make('h3', {}, `Answer ${i + 1}`), make('div', { class: 'prompt' }, make('h4', {}, 'Prompt'), make('p', { class: 'text' }, plain(asked(answer.Prompt)))),
    make('div', { class: 'sides' }, side(named(first.step), first.answers?.[i]), last.step === first.step ? null : side(named(last.step), answer))));
  place.replaceChildren(make('div', { class: 'card' }, make('h2', { id: 'samples-title' }, 'Answers to held-out prompts'), ...rows));
}

function side(title, answer) {
  return make('div', {}, make('h4', {}, title), make('p', { class: 'text' }, plain(answer?.Policy), answer?.is_cut ? make('span', { class: 'cut', title: 'The model had not ended it' }, ' ⟨cut⟩') : null));
}

/** What a run printed, the end of it: `printed` is `{id, text}` of the run that was asked last; `onOpen()` asks. */
export function drawConsole(place, shown, printed, onOpen) {
  const run = shown.find((one) => one.details?.has_console);
  place.hidden = !run;
  if (!run) return;
  if (!place.firstChild) {
    const output = make('pre', { class: 'console', tabindex: '0' });
    place.append(make('div', { class: 'card' }, make('h2', { id: 'console-title' }, 'Console'),
      make('details', { ontoggle: () => onOpen() }, make('summary', {}), output)));
  }
  place.querySelector('summary').textContent = `What ${plain(run.summary.title)} printed`;
  const output = place.querySelector('pre');
  const text = printed?.id === run.summary.id ? plain(printed.text) : '';
  if (output.textContent === text) return;
  const atEnd = output.scrollTop + output.clientHeight >= output.scrollHeight - 30;
  output.textContent = text;
  if (atEnd) output.scrollTop = output.scrollHeight;
}

/** Settings side by side: with several runs those that differ, and all of them below. A setting that only one run has is no difference. */
export function drawSettings(place, shown) {
  const runs = shown.filter((run) => run.details);
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.details.settings)))];
  place.hidden = !names.length;
  if (!names.length) return;
  const open = place.querySelector('details')?.open;
  const known = (name) => runs.map((run) => run.details.settings[name]).filter((value) => value !== undefined);
  const differing = names.filter((name) => new Set(known(name)).size > 1);
  const commands = runs.filter((run) => run.details.reproduce).map((run) => make('code', { class: 'command', tabindex: '0' }, plain(run.details.reproduce)));
  const several = runs.length > 1;
  place.replaceChildren(make('div', { class: 'card' }, make('h2', { id: 'settings-title' }, several ? `Settings: ${differing.length} differ` : 'Settings'),
    several && differing.length ? settingsTable(runs, differing, 'Settings that differ') : null,
    commands.length ? make('p', {}, 'To repeat it:') : null, ...commands,
    make('details', { open: open ?? (!several && names.length < 25) }, make('summary', {}, `All ${names.length} settings`), settingsTable(runs, names, 'All settings'))));
}

function settingsTable(runs, names, label) {
  const head = make('tr', {}, make('th', { scope: 'col' }, 'Setting'), ...runs.map((run) => make('th', { scope: 'col' }, plain(run.summary.title))));
  const rows = names.map((name) => make('tr', {}, make('th', { scope: 'row' }, plain(name)), ...runs.map((run) => make('td', {}, plain(run.details.settings[name] ?? '–')))));
  return make('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': label }, make('table', {}, make('thead', {}, head), make('tbody', {}, ...rows)));
}
