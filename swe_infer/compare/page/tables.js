// Tables: those that the command prints, and the overlap of solved instances.

import { breakable, button, count, element, hint } from './dom.js';

/** A scrollable region around a wide table; it can be scrolled by keyboard. */
export function wide(table, label) {
  return element('div', { class: 'wide', tabindex: 0, role: 'group', 'aria-label': label }, table);
}

/** One of the command's tables: `title`, `columns`, `rows` and the number `left` of columns aligned left. */
export function figureTable({ title, columns, rows, left }) {
  const side = (index) => (index < left ? 'text' : null);
  const head = columns.map((name, index) => (name
    ? element('th', { scope: 'col', class: side(index) }, breakable(name))
    : element('td', { class: side(index) })));
  const body = rows.map((cells) => element('tr', {}, ...cells.map((cell, index) => (index
    ? element('td', { class: side(index) }, breakable(cell))
    : element('th', { scope: 'row', class: 'text' }, breakable(cell))))));
  return wide(element('table', {}, element('caption', { text: title }),
    element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...body)), title);
}

/** The tables of `names` that exist. */
export function figureTables(figures, names) {
  return names.filter((name) => figures.tables[name]?.rows.length).map((name) => figureTable(figures.tables[name]));
}

const MOST_SETS = 30;

/** For each set of runs, the instances that exactly these runs solved. `list` is called with the runs of a row. */
export function overlapTable(figures, list) {
  const { points, overlap } = figures;
  const largest = Math.max(1, ...overlap.map((row) => row.instances));
  const rows = overlap.slice(0, MOST_SETS).map(({ solved_by: letters, instances }) => {
    const who = !letters.length ? 'no run' : letters.length === points.length && points.length > 1 ? 'every run' : `only ${letters.join(', ')}`;
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
  });
  const head = element('tr', {}, element('th', { scope: 'col', class: 'text', text: 'solved by' }),
    ...points.map(({ letter }) => element('th', { scope: 'col', class: 'mark', text: letter })),
    element('th', { scope: 'col', text: 'instances' }), element('td', {}));
  const title = 'Instances by the runs that solved them';
  const table = element('table', { class: 'overlap' }, element('caption', { text: title }), element('thead', {}, head), element('tbody', {}, ...rows));
  const rest = overlap.length - rows.length;
  return [wide(table, title), ...(rest > 0 ? [hint(`${count(rest)} more sets of runs, each with ${count(overlap[MOST_SETS].instances)} instances or fewer.`)] : [])];
}
