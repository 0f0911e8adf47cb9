// One instance, in a dialog: outcomes of all samples, two of them side by side, the task.

import { breakable, button, byId, check, choice, count, element, hint, keepingFocus } from './dom.js';
import { patchSize, patchTable } from './diff.js';
import { addressOf, nameIn, shownInstances } from './instances.js';
import { source } from './source.js';
import { wide } from './tables.js';

const GOLD = 'gold';

/** What is shown. A side is `GOLD` or [run, sample]; null: it is chosen for each instance. */
const view = { name: null, number: null, details: null, sides: [null, null], split: false, whole: false };

let figures, index, numbers;

export function setInstance(newFigures, newIndex) {
  [figures, index] = [newFigures, newIndex];
  numbers = new Map(index.names.map((name, number) => [name, number]));
  if (view.name !== null) view.number = numbers.get(view.name) ?? null;
}

const label = (run) => `${figures.points[run].letter}  ${figures.points[run].label}`;

function folded(title, open, ...content) {
  return element('details', { open }, element('summary', {}, breakable(title)), ...content);
}

function preformatted(text, name) {
  return element('pre', { tabindex: 0, role: 'group', 'aria-label': name, text });
}

/** The sides of an instance: those that the user chose, else two samples of which one alone succeeds, else any two. */
function chosenSides() {
  const { runs, gold } = view.details;
  const exists = (side) => (side === GOLD ? gold !== null : side !== null && side[1] < (runs[side[0]]?.length ?? 0));
  const every = runs.flatMap((samples, run) => samples.map((_, at) => [run, at]));
  const [first = null] = every;
  const solves = ([run, at]) => runs[run][at].solved;
  const second = every.find((side) => solves(side) !== solves(first)) ?? every.find(([run]) => run !== first[0]) ?? (gold === null ? every[1] : GOLD);
  return view.sides.map((side, place) => (exists(side) ? side : [first, second ?? null][place]));
}

const encoded = (side) => (side === GOLD ? GOLD : side ? side.join('.') : '');
const decoded = (text) => (text === GOLD ? GOLD : text ? text.split('.').map(Number) : null);

const FACTS = ['cost', 'latency', 'tokens in', 'cached', 'tokens out', 'reasoning', 'finish'];

function outcomes() {
  const rows = view.details.runs.flatMap((samples, run) => (samples.length ? samples.map((sample, at) => {
    const facts = new Map(sample.facts);
    return element('tr', {},
      element('th', { scope: 'row', class: 'text' }, breakable(label(run) + (samples.length > 1 ? `, sample ${sample.sample}` : ''))),
      element('td', { class: `text ${sample.solved ? 'yes' : 'no'}`, text: sample.outcome }),
      ...FACTS.map((fact) => element('td', { text: facts.get(fact) ?? '' })),
      element('td', {}, ...['left', 'right'].map((name, place) => button(name, () => { show(place, [run, at]); byId('view').scrollTop = 0; }, {
        id: `show-${name}-${run}-${at}`, class: 'plain', 'aria-label': `Show ${figures.points[run].letter}, sample ${sample.sample}, on the ${name}`,
      }))));
  }) : [element('tr', {}, element('th', { scope: 'row', class: 'text' }, breakable(label(run))), element('td', { class: 'text weak', colspan: FACTS.length + 2, text: 'no record' }))]));
  const head = ['run', 'outcome', ...FACTS, 'show'];
  const table = element('table', { class: 'samples' }, element('caption', { text: 'All samples' }),
    element('thead', {}, element('tr', {}, ...head.map((text, at) => element('th', { scope: 'col', text, class: at < 2 ? 'text' : null })))),
    element('tbody', {}, ...rows));
  return wide(table, 'All samples');
}

function show(place, side) {
  view.sides = chosenSides();
  view.sides[place] = side;
  keepingFocus(draw);
}

function controls(sides) {
  const { runs, gold } = view.details;
  const options = runs.flatMap((samples, run) => samples.map((sample, at) => [`${run}.${at}`,
    `${label(run)}${samples.length > 1 ? `, sample ${sample.sample}` : ''}${sample.solved ? ' ✓' : ''}`]));
  if (gold !== null) options.push([GOLD, 'gold patch']);
  const menu = (name, place) => choice(`side-${place}`, name, options, encoded(sides[place]), (value) => show(place, decoded(value)));
  const known = Object.keys(view.details.files ?? {}).length;
  return element('div', { class: 'controls' }, ...(options.length ? [menu('Left', 0)] : []), ...(options.length > 1 ? [menu('Right', 1)] : []),
    check('split', 'before and after side by side', view.split, (split) => { view.split = split; keepingFocus(draw); }),
    ...(known ? [check('whole', 'whole files', view.whole, (whole) => { view.whole = whole; keepingFocus(draw); })] : []));
}

function patchPart(number, name) {
  if (number === null || number === undefined) return [hint('No patch.')];
  const patch = view.details.patches[number];
  return [hint(patchSize(patch)), ...patchTable(patch, name, { split: view.split, files: view.whole ? view.details.files : null })];
}

function conversation(run, at) {
  const turns = view.details.turns?.[run]?.[at];
  if (!turns) {
    return [hint(`This page has no answer of this instance. Make it with --full ${view.name} to include it.`)];
  }
  return turns.flatMap((turn, number) => {
    const name = turns.length > 1 ? ` ${number + 1} of ${turns.length}` : '';
    return [
      ...(turn.feedback ? [folded(`Message after the answer${turns.length > 2 ? ` ${number}` : ''}`, false, preformatted(turn.feedback, 'message'))] : []),
      ...(turn.reasoning ? [folded(`Reasoning${name}, ${count(turn.reasoning.length)} characters`, false, preformatted(turn.reasoning, 'reasoning'))] : []),
      turn.answer ? folded(`Answer${name}, ${count(turn.answer.length)} characters`, false, preformatted(turn.answer, 'answer')) : hint(`Answer${name}: none.`),
      ...(turn.patch ? [folded(`Patch of answer${name}`, false, ...patchTable(turn.patch, `patch of answer${name}`, { split: view.split, files: null }))] : []),
    ];
  });
}

function pane(side, place) {
  const name = place ? 'right' : 'left';
  if (side === GOLD) {
    return element('article', { 'aria-label': `${name}: gold patch` }, element('h3', { text: 'Gold patch' }), ...patchPart(view.details.gold, 'gold patch'));
  }
  const [run, at] = side;
  const sample = view.details.runs[run][at];
  const title = label(run) + (view.details.runs[run].length > 1 ? `, sample ${sample.sample}` : '');
  const facts = element('dl', {}, ...sample.facts.map(([term, value]) => element('div', {}, element('dt', { text: term }), element('dd', { text: value }))));
  const output = view.details.outputs?.[run]?.[at];
  const links = sample.wandb ? [element('p', {}, element('a', { href: sample.wandb, target: '_blank', rel: 'noopener noreferrer', text: 'Run on W&B' }))] : [];
  return element('article', { 'aria-label': `${name}: ${title}` },
    element('h3', {}, breakable(title)),
    element('p', { class: sample.solved ? 'yes' : 'no', text: sample.outcome }),
    facts,
    ...links,
    ...(sample.notes.length ? [element('ul', { class: 'notes' }, ...sample.notes.map((text) => element('li', { text })))] : []),
    ...(sample.verdict ? [element('h4', { text: 'Tests' }), preformatted(sample.verdict, 'verdict of the tests')] : []),
    ...(output ? [folded('Output of the tests (its end)', false, preformatted(output, 'output of the tests'))] : []),
    element('h4', { text: 'Patch' }), ...patchPart(sample.patch, `patch of ${title}`),
    element('h4', { text: 'Answer' }), ...conversation(run, at));
}

function task() {
  const { prompt } = view.details;
  if (!prompt) return [hint('This page does not have the prompt.')];
  return prompt.map(({ path, text }) => (path === null
    ? element('pre', { class: 'prompt', text })
    : folded(`${path}, ${count(text.trimEnd().split('\n').length - 2)} lines`, false, preformatted(text, path))));
}

function draw() {
  const { name } = view;
  const shown = shownInstances();
  const at = shown.indexOf(view.number);
  const step = (text, by, id) => {
    const next = at < 0 ? undefined : shown[at + by];
    return button(text, () => next !== undefined && go(next), { id, 'aria-disabled': next === undefined ? 'true' : null });
  };
  const bar = element('div', { class: 'bar' }, element('h2', { id: 'view-title' }, breakable(name)),
    element('div', { class: 'controls' }, step('Previous', -1, 'previous'), step('Next', 1, 'next'), button('Close', () => byId('view').close(), { id: 'close' })));
  const sides = chosenSides();
  const panes = sides.map((side, place) => side && pane(side, place)).filter(Boolean);
  byId('view').replaceChildren(bar,
    controls(sides), element('div', { class: view.split ? 'panes stacked' : 'panes' }, ...panes),
    element('h3', { text: 'Prompt' }), ...task(), element('h3', { text: 'Samples' }), outcomes());
}

/** Shows an instance in the dialog. */
async function open(number) {
  const name = index.names[number];
  let details = null, failure;
  try {
    details = await source.instance(number, name);
  } catch (error) {
    failure = error;
  }
  if (view.name !== name) return; // the user chose another one meanwhile
  view.details = details;
  const dialog = byId('view');
  if (!details) {
    dialog.replaceChildren(element('h2', { id: 'view-title' }, breakable(name)), hint(`The instance could not be loaded: ${failure.message}`),
      button('Close', () => dialog.close(), { id: 'close' }));
  } else keepingFocus(draw);
  if (!dialog.open) {
    dialog.showModal();
    dialog.scrollTop = 0;
  }
  if (!dialog.contains(document.activeElement) || document.activeElement === dialog) byId('close').focus({ preventScroll: true });
}

function go(number) {
  window.location.hash = addressOf(index.names[number]);
}

/** Opens the instance that the URL fragment names, or closes the dialog. */
export function follow() {
  const name = nameIn(window.location.hash);
  if (!numbers.has(name)) {
    view.name = view.number = view.details = null;
    if (byId('view').open) byId('view').close();
    return;
  }
  const number = numbers.get(name);
  if (view.name !== name) byId('view').scrollTop = 0;
  [view.name, view.number] = [name, number];
  open(number);
}

/** Draws the open instance again, with new data. */
export async function refreshInstance() {
  const { name, number, details: before } = view;
  if (number === null) return;
  if (before?.id !== name) { // it could not be loaded
    await open(number);
    return;
  }
  const details = await source.instance(number, name);
  if (view.name !== name || JSON.stringify(details) === JSON.stringify(before)) return;
  view.details = details;
  const top = byId('view').scrollTop;
  keepingFocus(draw);
  byId('view').scrollTop = top;
}

export function startInstance() {
  const dialog = byId('view');
  dialog.addEventListener('close', () => {
    const { name } = view;
    view.name = view.number = view.details = null;
    if (name === null) return;
    window.history.replaceState(null, '', '#instances');
    document.querySelector(`#instances-table a[href="${CSS.escape(addressOf(name))}"]`)?.focus();
  });
  dialog.addEventListener('keydown', (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
    const shown = shownInstances();
    const by = { j: 1, k: -1 }[event.key];
    const next = by && shown[shown.indexOf(view.number) + by];
    if (next !== undefined && by) go(next);
  });
  window.addEventListener('hashchange', follow);
}
