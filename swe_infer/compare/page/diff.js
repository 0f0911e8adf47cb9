// Patches as coloured diffs. Models write them, so the parser accepts anything and never fails: what is not part of a
// hunk is shown as it is.

import { button, count, element } from './dom.js';

const HUNK = /^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@/;
const MOST_ROWS = 4000;

/**
 * The lines of a unified diff: `kind` (`header`, `hunk`, `context`, `delete`, `add`, `note`), `text` without the sign,
 * and the line numbers `before` and `after`. The first header line of a file has its `path`.
 */
function parsePatch(patch) {
  const rows = [];
  let before = 0, after = 0, beforeLeft = 0, afterLeft = 0;
  for (const line of patch.replace(/\n$/, '').split('\n')) {
    const hunk = beforeLeft || afterLeft ? null : HUNK.exec(line);
    if (hunk) {
      [before, after] = [Number(hunk[1]), Number(hunk[3])];
      [beforeLeft, afterLeft] = [Number(hunk[2] ?? 1), Number(hunk[4] ?? 1)];
      rows.push({ kind: 'hunk', text: line });
    } else if ((beforeLeft || afterLeft) && (line === '' || line[0] === ' ')) {
      rows.push({ kind: 'context', text: line.slice(1), before, after });
      before += 1;
      after += 1;
      beforeLeft = Math.max(0, beforeLeft - 1);
      afterLeft = Math.max(0, afterLeft - 1);
    } else if (beforeLeft && line[0] === '-') {
      rows.push({ kind: 'delete', text: line.slice(1), before });
      before += 1;
      beforeLeft -= 1;
    } else if (afterLeft && line[0] === '+') {
      rows.push({ kind: 'add', text: line.slice(1), after });
      after += 1;
      afterLeft -= 1;
    } else {
      if (line[0] !== '\\') beforeLeft = afterLeft = 0;
      const path = /^--- (?:a\/)?(.+?)(?:\t.*)?$/.exec(line)?.[1] ?? null;
      rows.push({ kind: line[0] === '\\' ? 'note' : 'header', text: line, path });
    }
  }
  return rows;
}

/** The rows with the unchanged lines of the files around the hunks; `files`: path to content before the patch. */
function inWholeFiles(rows, files) {
  const found = [];
  let lines = null, next = 1, shift = 0, open = false;
  const through = (end) => {
    for (; lines && next <= Math.min(end, lines.length); next += 1) {
      found.push({ kind: 'context', text: lines[next - 1], before: next, after: next + shift });
    }
  };
  for (const row of rows) {
    if (row.kind === 'header') {
      if (open) through(Infinity);
      open = false;
      if (row.path !== null) {
        lines = Object.hasOwn(files, row.path) ? files[row.path].replace(/\n$/, '').split('\n') : null;
        [next, shift] = [1, 0];
      }
    } else if (row.kind === 'hunk') {
      const [, start, size = 1, , added = 1] = HUNK.exec(row.text);
      through(Number(start) - (Number(size) ? 1 : 0));
      next = Math.max(next, Number(start) + Number(size) + (Number(size) ? 0 : 1));
      shift += added - size;
      open = true;
      if (lines) continue; // the lines around it are shown
    }
    found.push(row);
  }
  if (open) through(Infinity);
  return found;
}

/** Whether the hunks of a patch fit the files; a patch of a file that is not known does not. */
function fits(rows, files) {
  let lines = null;
  let known = false;
  for (const row of rows) {
    if (row.kind === 'header' && row.path !== null) {
      lines = Object.hasOwn(files, row.path) ? files[row.path].split('\n') : null;
      known ||= lines !== null;
    } else if (lines && row.before && lines[row.before - 1] !== row.text) return false;
  }
  return known;
}

/** Each deleted line beside the added line that replaces it: [old, new], either may be null. */
function paired(rows) {
  const pairs = [];
  let deleted = [], added = [];
  const flush = () => {
    for (let index = 0; index < Math.max(deleted.length, added.length); index += 1) {
      pairs.push([deleted[index] ?? null, added[index] ?? null]);
    }
    [deleted, added] = [[], []];
  };
  for (const row of rows) {
    if (row.kind === 'delete') {
      if (added.length) flush();
      deleted.push(row);
    } else if (row.kind === 'add') added.push(row);
    else {
      flush();
      pairs.push([row, row]);
    }
  }
  flush();
  return pairs;
}

/** Marks in both rows what is between their common start and end. */
function markChange(old, now) {
  if (old.text.length > 2000 || now.text.length > 2000) return;
  let start = 0, end = 0;
  const most = Math.min(old.text.length, now.text.length);
  while (start < most && old.text[start] === now.text[start]) start += 1;
  while (end < most - start && old.text.at(-1 - end) === now.text.at(-1 - end)) end += 1;
  if (start + end < most / 3) return; // another line, not a changed one
  old.changed = [start, old.text.length - end];
  now.changed = [start, now.text.length - end];
}

const SIGNS = { add: '+', delete: '-', context: ' ' };

function code(row) {
  const { text, changed, kind } = row;
  const parts = changed && changed[0] < changed[1]
    ? [text.slice(0, changed[0]), element('mark', { text: text.slice(...changed) }), text.slice(changed[1])] : [text];
  return element('td', { class: 'code' }, element('span', { class: 'sign', text: SIGNS[kind] ?? '' }), ...parts);
}

const number = (value) => element('td', { class: 'number', text: value ?? '' });

function unifiedRow(row) {
  if (row.before === undefined && row.after === undefined) {
    return element('tr', { class: row.kind }, element('td', { colspan: 3, class: 'code', text: row.text }));
  }
  return element('tr', { class: row.kind }, number(row.before), number(row.after), code(row));
}

function splitRow([old, now]) {
  if (old && old === now && old.before === undefined) {
    return element('tr', { class: old.kind }, element('td', { colspan: 4, class: 'code', text: old.text }));
  }
  const half = (row, value) => (row ? [number(value), code(row)] : [number(null), element('td', { class: 'code empty' })]);
  const cells = [...half(old, old?.before), ...half(now, now?.after)];
  const kinds = [old?.kind, now?.kind];
  kinds.forEach((kind, index) => {
    if (kind && kind !== 'context') cells[2 * index].classList.add(kind), cells[2 * index + 1].classList.add(kind);
  });
  return element('tr', {}, ...cells);
}

/** A patch as a table. `split`: before and after side by side; `files`: shows the patch within these, if it fits. */
export function patchTable(patch, label, { split, files }) {
  let rows = parsePatch(patch);
  const whole = files && fits(rows, files);
  const pairs = paired(rows);
  for (const [old, now] of pairs) if (old && now && old !== now) markChange(old, now);
  if (whole) rows = inWholeFiles(rows, files);
  const items = split ? (whole ? paired(rows) : pairs) : rows;
  const body = element('tbody');
  const show = (most) => body.replaceChildren(...items.slice(0, most).map(split ? splitRow : unifiedRow));
  show(MOST_ROWS);
  const table = element('table', { class: split ? 'diff split' : 'diff', 'aria-label': label },
    ...(split ? [element('colgroup', {}, ...['number', '', 'number', ''].map((kind) => element('col', { class: kind })))] : []), body);
  const holder = element('div', { class: 'wide', tabindex: 0, role: 'group', 'aria-label': label }, table);
  if (items.length <= MOST_ROWS) return [holder];
  const more = button(`Show all ${count(items.length)} lines`, () => { show(Infinity); more.remove(); });
  return [holder, more];
}

/** The number of added and deleted lines, and of files. */
export function patchSize(patch) {
  const rows = parsePatch(patch);
  const number = (kind) => rows.filter((row) => row.kind === kind).length;
  const paths = rows.filter((row) => row.kind === 'header' && row.path !== null).length;
  return `+${count(number('add'))} −${count(number('delete'))} in ${count(paths)} file${paths === 1 ? '' : 's'}`;
}
