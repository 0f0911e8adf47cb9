// Tables: those that the command prints, and the overlap of solved instances.

import { breakable, button, count, element } from './dom.js';

/** A scrollable region around a wide table; it can be scrolled by keyboard. */
export function wide(table, label) {
  return element('div', { class: 'wide', tabindex: 0, role: 'group', 'aria-label': label }, table);
}

const SHORT = 12; // characters of text that is not broken

/** One of the command's tables: `title`, `columns`, `rows` and the number `left` of columns aligned left. */
export function figureTable({ title, columns, rows, left }) {
  const side = (index) => (index < left ? 'text' : null);
  const kind = (cell) => `text ${cell.length > SHORT ? 'long' : 'short'}`;
  const head = columns.map((name, index) => (name
    ? element('th', { scope: 'col', class: side(index) }, breakable(name))
    : element('td', { class: side(index) })));
  const body = rows.map((cells) => element('tr', {}, ...cells.map((cell, index) => (index
    ? (index < left ? element('td', { class: kind(cell) }, breakable(cell)) : element('td', {}, cell))
    : element('th', { scope: 'row', class: kind(cell) }, breakable(cell))))));
  return wide(element('table', {}, element('caption', { text: title }),
    element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...body)), title);
}

const MOST_ROWS = 20; // of a table that is not folded

/** The tables of `names` that exist. */
export function figureTables(figures, names) {
  return names.map((name) => figures.tables[name]).filter((table) => table?.rows.length).map((table) => {
    const shown = figureTable(table);
    return table.rows.length <= MOST_ROWS ? shown : element('details', {}, element('summary', { text: table.title }), shown);
  });
}

const MOST_SETS = 12;

/** A set of runs in words. */
function nameOf(letters, points) {
  const others = points.map(({ letter }) => letter).filter((letter) => !letters.includes(letter));
  if (!letters.length) return 'no run';
  if (!others.length) return 'every run';
  const listed = (names) => (names.length <= 8 ? names.join(', ') : `${names.slice(0, 3).join(', ')} and ${names.length - 3} more`);
  return others.length < letters.length ? `every run but ${listed(others)}` : `only ${listed(letters)}`;
}

/** For each set of runs, the instances that exactly these runs solved. `list` is called with the runs of a row. */
export function overlapTable(figures, list) {
  const { points, overlap } = figures;
  const largest = Math.max(1, ...overlap.map((row) => row.instances));
  const row = ({ solved_by: letters, instances }) => {
    const who = nameOf(letters, points);
    const bar = element('span', { class: 'bar' });
    bar.style.width = `${(100 * instances) / largest}%`;
    return element('tr', {},
      element('th', { scope: 'row', class: 'text' }, breakable(who)),
      ...points.map(({ letter }) => {
        const yes = letters.includes(letter);
        return element('td', { class: 'mark' }, element('span', { class: yes ? 'dot on' : 'dot', role: 'img', 'aria-label': yes ? 'solved' : 'not solved' }));
      }),
      element('td', {}, button(count(instances), () => list(letters, who), { 'aria-label': `${count(instances)} instances solved by ${who}: list them` })),
      element('td', { class: 'bars' }, bar));
  };
  const body = element('tbody', {}, ...overlap.slice(0, MOST_SETS).map(row));
  const head = element('tr', {}, element('th', { scope: 'col', class: 'text', text: 'solved by' }),
    ...points.map(({ letter }) => element('th', { scope: 'col', class: 'mark', text: letter })),
    element('th', { scope: 'col', text: 'instances' }), element('td', {}));
  const title = 'Instances by the runs that solved them';
  const table = element('table', { class: 'overlap' }, element('caption', { text: title }), element('thead', {}, head), body);
  const rest = overlap.slice(MOST_SETS);
  if (!rest.length) return [wide(table, title)];
  const more = button(`Show ${count(rest.length)} more, with ${count(rest[0].instances)} instance${rest[0].instances === 1 ? '' : 's or fewer'} each`, () => {
    body.append(...rest.map(row));
    more.remove();
    body.rows[MOST_SETS].querySelector('button').focus();
  });
  return [wide(table, title), more];
}
