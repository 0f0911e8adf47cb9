// The list of instances: search, filters, sort, pages.

import { button, byId, choice, count, element, keepingFocus } from './dom.js';
import { wide } from './tables.js';

const ROWS = 30; // of a page of the list, about a screen: more make filters slow
const FEW = 6; // runs whose problems are named beside their marks

const NONE = { search: '', repository: '', show: 'all', solvedBy: '', notBy: '', problem: '', exactly: null, who: '' };
const list = { ...NONE, sort: 'name', descending: false, page: 0, shown: [] };

let figures, index, controls, table;

export function setInstances(newFigures, newIndex) {
  [figures, index, controls, table] = [newFigures, newIndex, null, null];
  const known = (letter) => figures.points.some((point) => point.letter === letter);
  for (const key of ['solvedBy', 'notBy']) if (list[key] && !known(list[key])) list[key] = '';
}

const runOf = (letter) => figures.points.findIndex((point) => point.letter === letter);
const solved = (run, number) => index.scores[run][number] >= 0 && index.marks[index.scores[run][number]].value > 0;
const runs = () => figures.points.map((_, run) => run);

const SHOWN = {
  all: ['all', () => true],
  differ: ['the runs differ', (number) => index.differ[number]],
  none: ['solved by no run', (number) => !runs().some((run) => solved(run, number))],
  some: ['solved by a run', (number) => runs().some((run) => solved(run, number))],
  every: ['solved by every run', (number) => runs().every((run) => solved(run, number))],
};

/** The numbers of the instances that pass the filters, in order. */
function filtered() {
  const query = list.search.trim().toLowerCase();
  const [by, notBy] = [runOf(list.solvedBy), runOf(list.notBy)];
  const shows = SHOWN[list.show][1];
  const problem = list.problem === '' ? 0 : 1 << Number(list.problem);
  const exactly = list.exactly && new Set(list.exactly);
  const found = [];
  for (let number = 0; number < index.names.length; number += 1) {
    if (query && !index.names[number].toLowerCase().includes(query)) continue;
    if (list.repository !== '' && index.repository[number] !== Number(list.repository)) continue;
    if (!shows(number)) continue;
    if (by >= 0 && !solved(by, number)) continue;
    if (notBy >= 0 && solved(notBy, number)) continue;
    if (problem && !index.problems.some((own) => own[number] & problem)) continue;
    if (exactly && !figures.points.every(({ letter }, run) => solved(run, number) === exactly.has(letter))) continue;
    found.push(number);
  }
  return sorted(found);
}

function sorted(numbers) {
  if (list.sort === 'name') return list.descending ? numbers.reverse() : numbers;
  const run = runOf(list.sort);
  const values = run >= 0
    ? (number) => index.marks[index.scores[run][number]]?.value ?? null
    : (number) => index[list.sort === 'cost' ? 'costs' : 'latencies'].values[number];
  const sign = list.descending ? -1 : 1;
  return numbers.sort((a, b) => {
    const [x, y] = [values(a), values(b)];
    if (x === null || y === null) return (x === null) - (y === null); // unknown ones last
    return sign * (x - y) || a - b;
  });
}

export const shownInstances = () => list.shown;

function change(changes) {
  Object.assign(list, { page: 0 }, changes);
  keepingFocus(drawInstances);
}

/** Lists the instances that exactly the runs with these letters solved. */
export function listExactly(letters, who) {
  change({ ...NONE, exactly: letters, who });
  byId('instances').scrollIntoView();
  byId('search').focus({ preventScroll: true });
}

/** The menus: [id, filter, label, options]; only those with a choice. */
function menus() {
  const letters = figures.points.map(({ letter }) => [letter, letter]);
  const problems = index.problem_names.map((name, bit) => [String(bit), name]).filter(([bit]) => index.problems_present & (1 << Number(bit)));
  const repositories = index.repositories.map((name, number) => [String(number), name]);
  return [
    ['show', 'show', 'Show', Object.entries(SHOWN).map(([key, [text]]) => [key, text])],
    ...(letters.length > 1 ? [
      ['solved-by', 'solvedBy', 'Solved by', [['', 'any run'], ...letters]],
      ['not-by', 'notBy', 'Not solved by', [['', '–'], ...letters]],
    ] : []),
    ...(problems.length ? [['problem', 'problem', 'With', [['', 'any outcome'], ...problems]]] : []),
    ...(repositories.length > 1 ? [['repository', 'repository', 'Repository', [['', 'all'], ...repositories]]] : []),
  ];
}

/** Draws the controls; after a change of filters only their values, as this follows every key that is typed. */
function drawControls() {
  if (!controls) {
    const search = element('input', { id: 'search', type: 'search', autocomplete: 'off', spellcheck: 'false' });
    search.addEventListener('input', () => change({ search: search.value }));
    const selects = menus().map(([id, key, label, options]) => [key, choice(id, label, options, list[key], (value) => change({ [key]: value }))]);
    controls = { search, selects: selects.map(([key, label]) => [key, label.querySelector('select')]), buttons: element('span', { class: 'controls' }) };
    byId('instances-controls').replaceChildren(element('label', {}, 'Search ', search), ...selects.map(([, label]) => label), controls.buttons);
  }
  if (controls.search.value !== list.search) controls.search.value = list.search;
  for (const [key, select] of controls.selects) select.value = list[key];
  const exactly = list.exactly ? [button(`Solved by ${list.who} ✕`, () => change({ exactly: null, who: '' }), { id: 'exactly', 'aria-label': `Solved by ${list.who}: remove this filter` })] : [];
  const isFiltered = Object.keys(NONE).some((key) => list[key] !== NONE[key]);
  const reset = isFiltered ? [button('Reset', () => { change({ ...NONE }); byId('search').focus(); }, { id: 'reset' })] : [];
  controls.buttons.replaceChildren(...exactly, ...reset);
}

/** A column's heading: a button that sorts by it. */
function heading(key, title, kind = null) {
  const active = list.sort === key;
  const toggle = () => change(active ? { descending: !list.descending } : { sort: key, descending: key !== 'name' });
  const arrow = active ? (list.descending ? ' ↓' : ' ↑') : '';
  return element('th', { scope: 'col', class: kind, 'aria-sort': active ? (list.descending ? 'descending' : 'ascending') : null },
    button(`${title}${arrow}`, toggle, { id: `sort-${key}`, class: 'plain', title: `Sort by ${title}` }));
}

function cell(run, number, named) {
  const score = index.scores[run][number];
  if (score < 0) return element('td', { class: 'mark weak', text: named ? 'no record' : '' });
  const { value, text } = index.marks[score];
  const td = element('td', { class: `mark ${value > 0 ? 'yes' : 'no'}`, text });
  if (named && value < 1) {
    const problem = index.problem_names.find((_, bit) => index.problems[run][number] & (1 << bit));
    if (problem) td.append(element('small', { text: problem }));
  }
  return td;
}

const PREFIX = 'instance=';
const isSection = (name) => byId(name)?.matches('main > section') ?? false;

/** The URL fragment of an instance: its id, after a prefix if a section has the same, or if it is empty. */
export function addressOf(name) {
  return `#${name === '' || isSection(name) ? PREFIX : ''}${encodeURIComponent(name)}`;
}

/** The instance id in a URL fragment, which may not be one. */
export function nameIn(fragment) {
  const prefixed = fragment.startsWith(`#${PREFIX}`);
  const text = fragment.slice(1 + (prefixed ? PREFIX.length : 0));
  if (!prefixed && (text === '' || isSection(text))) return null;
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function row(number) {
  const name = index.names[number];
  const named = figures.points.length <= FEW;
  return element('tr', {},
    element('th', { scope: 'row', class: 'text' }, element('a', { href: addressOf(name), text: name })),
    ...figures.points.map((_, run) => cell(run, number, named)),
    element('td', { text: index.costs.texts[number] }), element('td', { text: index.latencies.texts[number] }));
}

/** Draws the rows; the head only if the order changed, as with 50 runs it takes as long as the rows. */
function drawTable(numbers) {
  const order = `${list.sort} ${list.descending}`;
  if (table?.order !== order) {
    const head = element('tr', {}, heading('name', 'instance', 'text'),
      ...figures.points.map(({ letter }) => heading(letter, letter, 'mark')), heading('cost', 'cost'), heading('latency', 'median latency'));
    table = { order, body: element('tbody') };
    byId('instances-table').replaceChildren(wide(element('table', { class: 'instances' },
      element('caption', { text: `Instances by run (${figures.metric_name})` }), element('thead', {}, head), table.body), 'Instances'));
  }
  table.body.replaceChildren(...numbers.map(row));
}

export function drawInstances() {
  list.shown = filtered();
  const size = figures.points.length > 20 ? ROWS / 2 : ROWS;
  const pages = Math.max(1, Math.ceil(list.shown.length / size));
  list.page = Math.min(list.page, pages - 1);
  const first = list.page * size;
  const numbers = list.shown.slice(first, first + size);
  drawControls();
  const total = index.names.length;
  byId('instances-count').textContent = numbers.length
    ? `${count(first + 1)} to ${count(first + numbers.length)} of ${count(list.shown.length)}${list.shown.length < total ? ` (${count(total)} in all)` : ''}. Enter opens an instance; j and k go to the next and the previous one.`
    : `No instance of ${count(total)} passes the filters.`;
  drawTable(numbers);
  const turn = (text, by, id) => {
    const possible = list.page + by >= 0 && list.page + by < pages;
    const go = () => {
      list.page += by;
      keepingFocus(drawInstances);
      byId('instances').scrollIntoView();
    };
    return button(text, () => possible && go(), { id, 'aria-disabled': possible ? null : 'true' });
  };
  byId('instances-pages').replaceChildren(...(pages > 1
    ? [turn('Previous page', -1, 'previous-page'), element('span', { text: `Page ${count(list.page + 1)} of ${count(pages)}` }), turn('Next page', 1, 'next-page')] : []));
}
