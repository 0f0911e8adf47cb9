// Elements. Text from runs only becomes text nodes, never markup.

export const byId = (id) => document.getElementById(id);

/** Text with bidirectional marks made visible: they can show the code of a patch in another order than it has. */
const visible = (text) => text.replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (mark) => `[U+${mark.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}]`);

/** An HTML element; `attributes` may have listeners (`onclick`), `text` and plain attributes. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'text') node.textContent = visible(String(value));
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null).map((child) => (typeof child === 'string' ? visible(child) : child)));
  return node;
}

/** Text that may be broken after `/`, `_`, `=` and `,`, and after a point between letters, but not within words. */
export function breakable(text) {
  const fragment = document.createDocumentFragment();
  for (const part of text.split(/(?<=[/_=,])(?=\w)|(?<=[a-z]\.)(?=[a-z])/)) {
    if (fragment.hasChildNodes()) fragment.append(document.createElement('wbr'));
    fragment.append(visible(part));
  }
  return fragment;
}

/** `text`, shortened to `most` characters in the middle, as the ends of labels distinguish runs; at words, if it can. */
export function shortened(text, most) {
  if (text.length <= most) return text;
  const last = text.slice(text.lastIndexOf(' ') + 1);
  if (last.length + 2 > most) return `${text.slice(0, Math.max(1, most - 1))}…`;
  const start = text.slice(0, most - last.length - 2);
  const cut = Math.max(...[' ', '-', '=', '/', '_'].map((sign) => start.lastIndexOf(sign)));
  return `${start.slice(0, Math.max(0, cut))}… ${last}`;
}

export const count = (value) => value.toLocaleString('en');

export function hint(text) {
  return element('p', { class: 'hint', text });
}

export function button(text, onclick, attributes = {}) {
  return element('button', { type: 'button', text, onclick, ...attributes });
}

/** A labelled menu. `options`: [value, text]. */
export function choice(id, label, options, value, onChange) {
  const select = element('select', { id, onchange: () => onChange(select.value) },
    ...options.map(([key, text]) => element('option', { value: key, text })));
  select.value = value;
  return element('label', {}, `${label} `, select);
}

export function check(id, label, checked, onChange) {
  const box = element('input', { id, type: 'checkbox', onchange: () => onChange(box.checked) });
  box.checked = checked;
  return element('label', {}, box, label);
}

/** Runs `draw`, then restores the focus and the text selection of the control that had it, by its id. */
export function keepingFocus(draw) {
  const { id, selectionStart: start = null, selectionEnd: end = null } = document.activeElement ?? {};
  draw();
  const again = id && byId(id);
  if (!again || again === document.activeElement) return;
  again.focus({ preventScroll: true });
  if (start !== null && again.setSelectionRange) again.setSelectionRange(start, end);
}
