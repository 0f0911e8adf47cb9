// Renders the page from the JSON in #data. Text from runs only becomes text nodes, never markup.
'use strict';

const data = JSON.parse(document.getElementById('data').textContent);
const runs = data.runs;
const names = data.order; // objects reorder integer-like keys
const numbers = new Map(names.map((name, number) => [name, number]));
const COLOURS = ['#0a5dc2', '#c2410c', '#15803d', '#7c3aed', '#be123c', '#0e7490', '#a16207', '#475569'];
const SHAPES = 4;
const METRICS = { resolved: 'resolved', applies: 'patch applies' };

const byId = (id) => document.getElementById(id);

/** An HTML element; `attributes` may contain listeners (`onclick`), `text` and plain attributes. */
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svgElement(tag, attributes = {}, ...children) {
  return filled(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'text') node.textContent = value;
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

// ---- numbers as text

// One decimal as in the tables of the command: ties go to the even digit, toFixed takes the larger one.
const fixed = (value) => (Math.abs(value) % 1 === 0.25 ? value - 0.05 * Math.sign(value) : value).toFixed(1);
const percent = (rate) => (rate === null || rate === undefined ? '–' : `${fixed(100 * rate)} %`);
const count = (value) => value.toLocaleString('en');
const seconds = (value) => {
  if (value === null) return '–';
  if (value < 60) return `${fixed(value)} s`;
  const whole = Math.round(value);
  return whole < 3600
    ? `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, '0')} s`
    : `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, '0')} min`;
};
const dollars = (value) => {
  if (value === null) return 'unknown';
  if (value === 0) return '$0';
  const size = Math.abs(value);
  const digits = size >= 100 ? 2 : size >= 0.01 ? 4 : 6;
  const text = size.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return `${value < 0 ? '−' : ''}$${text}`;
};
const pValue = (p) => (p < 0.0001 ? '< 0.0001' : p.toFixed(4));
const shown = (value) => {
  if (value === null || value === undefined) return '–';
  return typeof value === 'string' ? value : JSON.stringify(value);
};
const pointInterval = (bounds) => (bounds ? ` [${fixed(100 * bounds[0])} to ${fixed(100 * bounds[1])}]` : '');
const dollarInterval = (bounds) => (bounds ? ` [${dollars(bounds[0])} to ${dollars(bounds[1])}]` : '');
const rateText = (rate) => (rate ? `${percent(rate.value)}${pointInterval(rate.wilson_95)}` : '–');

/** A table of strings and nodes. `columns`: [title, class]. */
function table(columns, rows, caption) {
  const head = element('tr', {}, ...columns.map(([title, kind]) => element('th', { scope: 'col', class: kind, text: title })));
  const body = rows.map(({ cells, ...attributes }) =>
    element('tr', attributes, ...cells.map((cell, index) => {
      const made = element('td', { class: columns[index][1] });
      made.append(cell);
      return made;
    })));
  return element('table', { 'aria-label': caption }, element('thead', {}, head), element('tbody', {}, ...body));
}

function choice(label, options, value, onChange) {
  const select = element('select', { onchange: () => onChange(select.value) },
    ...options.map(([key, text]) => element('option', { value: key, text })));
  select.value = value;
  return element('label', {}, `${label} `, select);
}

function check(label, checked, onChange) {
  const box = element('input', { type: 'checkbox', onchange: () => onChange(box.checked) });
  box.checked = checked;
  return element('label', {}, box, label);
}

// ---- plots

const WIDTH = 760, HEIGHT = 400, LEFT = 62, RIGHT = 20, TOP = 16, BOTTOM = 52;

/** Round values that divide [low, high] into about `parts` parts. */
function ticks(low, high, parts = 5) {
  const rough = (high - low || 1) / parts;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const values = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index += 1) values.push(index * step);
  return values;
}

/** `least`: the smallest span of the axis, as a share of the highest value, so that tiny differences do not fill it. */
function scale(values, begin, end, { logarithmic = false, zero = false, least = 0 } = {}) {
  let low = Math.min(...values), high = Math.max(...values);
  if (logarithmic) {
    low /= 1.3;
    high *= 1.3;
    const place = (v) => begin + (end - begin) * (Math.log(v / low) / Math.log(high / low));
    const powers = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const factor of [1, 2, 5]) powers.push(factor * 10 ** power);
    }
    return { place, ticks: powers.filter((v) => v >= low && v <= high) };
  }
  const widen = Math.max(0, least * Math.abs(high) - (high - low)) / 2;
  low -= widen;
  high += widen;
  const margin = (high - low || Math.abs(high) || 1) * 0.08;
  low = zero ? Math.min(0, low) : low - margin;
  high += margin;
  return { place: (v) => begin + ((end - begin) * (v - low)) / (high - low), ticks: ticks(low, high) };
}

function axes(svg, x, y, xTitle, yTitle, xText, yText) {
  for (const value of y.ticks) {
    const at = y.place(value);
    svg.append(svgElement('line', { class: 'grid', x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at }),
      svgElement('text', { class: 'tick', x: LEFT - 6, y: at + 4, 'text-anchor': 'end', text: yText(value) }));
  }
  for (const value of x.ticks) {
    const at = x.place(value);
    svg.append(svgElement('line', { class: 'axis', x1: at, x2: at, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 5 }),
      svgElement('text', { class: 'tick', x: at, y: HEIGHT - BOTTOM + 18, 'text-anchor': 'middle', text: xText(value) }));
  }
  svg.append(svgElement('path', { class: 'axis', d: `M${LEFT},${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}` }),
    svgElement('text', { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 10, 'text-anchor': 'middle', text: xTitle }),
    svgElement('text', { transform: `translate(14 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)`, 'text-anchor': 'middle', text: yTitle }));
}

const colourOf = (index) => COLOURS[index % COLOURS.length];

function shape(index, x, y) {
  const style = { fill: colourOf(index), class: 'ring', stroke: 'transparent' };
  const kind = Math.floor(index / COLOURS.length) % SHAPES;
  if (kind === 0) return svgElement('circle', { ...style, cx: x, cy: y, r: 6 });
  if (kind === 1) return svgElement('rect', { ...style, x: x - 5.5, y: y - 5.5, width: 11, height: 11 });
  const d = kind === 2 ? `M${x},${y - 7}l7,12h-14z` : `M${x},${y - 8}l7,8l-7,8l-7,-8z`;
  return svgElement('path', { ...style, d });
}

/** A plot with a tooltip that follows the pointer and the focus. */
function plot(holder, label, draw) {
  const tip = element('div', { class: 'tip', hidden: true });
  const svg = svgElement('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'group', 'aria-label': label });
  const point = (index, x, y, rate, yScale, text, letter) => {
    const low = rate.wilson_95 ? yScale.place(rate.wilson_95[0]) : y;
    const high = rate.wilson_95 ? yScale.place(rate.wilson_95[1]) : y;
    const show = () => {
      tip.textContent = text;
      tip.hidden = false;
      tip.style.left = `${Math.min(70, (100 * x) / WIDTH)}%`;
      tip.style.top = `${(100 * y) / HEIGHT + 3}%`;
    };
    const hide = () => { tip.hidden = true; };
    svg.append(svgElement('g', {
      tabindex: 0, role: 'button', 'aria-label': text.replaceAll('\n', ', '), onfocus: show, onblur: hide,
      onmouseenter: show, onmouseleave: hide, onclick: () => markRun(index),
      onkeydown: (event) => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); markRun(index); } },
    }, svgElement('path', { d: `M${x},${low}V${high}M${x - 4},${low}h8M${x - 4},${high}h8`, stroke: colourOf(index), 'stroke-opacity': 0.5, fill: 'none' }),
      shape(index, x, y), svgElement('text', { x: x + 9, y: y - 8, text: letter })));
  };
  draw(svg, point);
  holder.replaceChildren(svg, tip);
}

/** Marks a run's row in the first table and scrolls to it. */
function markRun(index) {
  for (const row of document.querySelectorAll('#runs-table tbody tr')) row.classList.remove('marked');
  const row = byId(`run-${index}`);
  row.classList.add('marked');
  byId('runs').scrollIntoView();
  row.focus();
}

// ---- sections

function drawRuns() {
  byId('title').textContent = `Comparison of ${runs.length} run${runs.length === 1 ? '' : 's'}`;
  document.title = byId('title').textContent;
  byId('notes').replaceChildren(...data.notes.map((note) => element('li', { text: note })));
  const evaluated = runs.some((run) => run.resolved);
  const failures = runs.some((run) => run.infrastructure_failures);
  const without = (run) => [
    count(run.infrastructure_failures), rateText(run.applies_without_failures), ...(evaluated ? [rateText(run.resolved_without_failures)] : []),
  ];
  const columns = [
    ['', 'text'], ['run', 'text fold'], ...data.deciding_keys.map((key) => [key, 'text fold']), ['instances', ''], ['completed', ''],
    ['failed', ''], ['skipped', ''], ['patch applies', ''], ...(evaluated ? [['resolved', '']] : []),
    ...(failures ? [['infrastructure failures', ''], ['without them: applies', ''], ...(evaluated ? [['without them: resolved', '']] : [])] : []), ['cost', ''], ['per success', ''],
    ['tokens in', ''], ['cached', ''], ['tokens out', ''], ['reasoning', ''], ['time', ''], ['tokens out/s', ''], ['median latency', ''],
  ];
  const rows = runs.map((run, index) => ({
    id: `run-${index}`, tabindex: -1,
    cells: [
      run.letter, run.label, ...data.deciding_keys.map((key) => shown(run.differs[key])),
      count(run.instances) + (run.samples > 1 ? ` × ${run.samples}` : ''),
      ...['completed', 'failed', 'skipped'].map((status) => count(run.statuses[status] || 0)),
      rateText(run.applies), ...(evaluated ? [rateText(run.resolved)] : []), ...(failures ? without(run) : []), dollars(run.cost_usd),
      run.cost_per_success_usd === null ? '–' : dollars(run.cost_per_success_usd) + dollarInterval(run.cost_per_success_95),
      count(run.usage.input_tokens), count(run.usage.cached_input_tokens), count(run.usage.output_tokens),
      count(run.usage.reasoning_tokens), seconds(run.wall_s),
      run.output_tokens_per_s === null ? '–' : fixed(run.output_tokens_per_s), seconds(run.median_latency_s),
    ],
  }));
  byId('runs-table').replaceChildren(table(columns, rows, 'Runs'));
}

const X_AXES = {
  cost: ['cost per instance', (run) => (run.cost_usd === null || !run.instances ? null : run.cost_usd / run.instances), dollars],
  tokens: ['output tokens per instance', (run) => (run.instances ? run.usage.output_tokens / run.instances : null), (v) => count(Math.round(v))],
  time: ['time of the run', (run) => run.wall_s, seconds],
};

const rates = () => Object.keys(METRICS).filter((metric) => runs.some((run) => run[metric]));

function drawCost(state) {
  const redraw = (change) => drawCost({ ...state, ...change });
  const [xTitle, xOf, xText] = X_AXES[state.x];
  const points = runs
    .map((run, index) => ({ run, index, x: xOf(run), rate: run[state.y] }))
    .filter((p) => p.x !== null && p.rate && p.rate.value !== null);
  const canLog = points.length > 0 && points.every((p) => p.x > 0);
  byId('cost-controls').replaceChildren(
    choice('x-axis', Object.entries(X_AXES).map(([key, [title]]) => [key, title]), state.x, (x) => redraw({ x })),
    choice('y-axis', rates().map((metric) => [metric, METRICS[metric]]), state.y, (y) => redraw({ y })),
    ...(canLog ? [check('logarithmic', state.logarithmic, (logarithmic) => redraw({ logarithmic }))] : []));
  if (!points.length) {
    byId('cost-plot').replaceChildren(element('p', { class: 'hint', text: `No run has both figures (${xTitle}, ${METRICS[state.y]}).` }));
    return;
  }
  plot(byId('cost-plot'), `${METRICS[state.y]} against ${xTitle}`, (svg, point) => {
    const x = scale(points.map((p) => p.x), LEFT, WIDTH - RIGHT, { logarithmic: state.logarithmic && canLog, least: 0.1 });
    const y = scale(points.flatMap((p) => [p.rate.value, ...(p.rate.wilson_95 || [])]), HEIGHT - BOTTOM, TOP, { zero: true });
    axes(svg, x, y, xTitle, METRICS[state.y], xText, (v) => `${Math.round(1000 * v) / 10} %`);
    const front = points
      .filter((p) => !points.some((q) => q.x <= p.x && q.rate.value >= p.rate.value && (q.x < p.x || q.rate.value > p.rate.value)))
      .sort((a, b) => a.x - b.x);
    svg.append(svgElement('polyline', { class: 'front', points: front.map((p) => `${x.place(p.x)},${y.place(p.rate.value)}`).join(' ') }));
    for (const p of points) {
      const text = `${p.run.letter}: ${p.run.name}\n${METRICS[state.y]} ${rateText(p.rate)}\n${xTitle}: ${xText(p.x)}${front.includes(p) ? '\nPareto-optimal' : ''}`;
      point(p.index, x.place(p.x), y.place(p.rate.value), p.rate, y, text, p.run.letter);
    }
  });
}

/** Keys with at least two values, all of them numbers; most values first. */
function sweptKeys() {
  const distinct = (key) => new Set(runs.map((run) => run.differs[key]).filter((value) => value !== null && value !== undefined));
  const numeric = (key) => [...distinct(key)].every((value) => typeof value === 'number');
  return data.differing_keys.filter((key) => distinct(key).size > 1 && numeric(key)).sort((a, b) => distinct(b).size - distinct(a).size);
}

function drawSweep(state) {
  const keys = sweptKeys();
  byId('sweep').hidden = byId('sweep-link').hidden = !keys.length;
  if (!keys.length) return;
  const key = state.key || keys[0];
  const redraw = (change) => drawSweep({ ...state, key, ...change });
  byId('sweep-controls').replaceChildren(
    choice('x-axis', keys.map((name) => [name, name]), key, (chosen) => redraw({ key: chosen })),
    choice('y-axis', rates().map((metric) => [metric, METRICS[metric]]), state.y, (y) => redraw({ y })));
  const points = runs
    .map((run, index) => ({ run, index, x: run.differs[key], rate: run[state.y] }))
    .filter((p) => typeof p.x === 'number' && p.rate && p.rate.value !== null);
  const series = new Map();
  for (const p of points) {
    const rest = data.differing_keys.filter((other) => other !== key).map((other) => `${other}=${shown(p.run.differs[other])}`).join(', ');
    series.set(rest, [...(series.get(rest) || []), p]);
  }
  plot(byId('sweep-plot'), `${METRICS[state.y]} over ${key}`, (svg, point) => {
    const x = scale(points.map((p) => p.x), LEFT, WIDTH - RIGHT);
    const y = scale(points.flatMap((p) => [p.rate.value, ...(p.rate.wilson_95 || [])]), HEIGHT - BOTTOM, TOP, { zero: true });
    axes(svg, x, y, key, METRICS[state.y], (v) => String(Number(v.toPrecision(6))), (v) => `${Math.round(1000 * v) / 10} %`);
    for (const line of series.values()) {
      line.sort((a, b) => a.x - b.x);
      svg.append(svgElement('polyline', { fill: 'none', stroke: colourOf(line[0].index), points: line.map((p) => `${x.place(p.x)},${y.place(p.rate.value)}`).join(' ') }));
    }
    for (const [rest, line] of series) {
      for (const p of line) {
        point(p.index, x.place(p.x), y.place(p.rate.value), p.rate, y,
          `${p.run.letter}: ${p.run.name}\n${key} ${p.x}${rest ? `\n${rest}` : ''}\n${METRICS[state.y]} ${rateText(p.rate)}`, p.run.letter);
      }
    }
  });
}

function drawPassAt() {
  const sampled = runs.map((run, index) => ({ run, index })).filter(({ run }) => Object.keys(run.pass_at).length);
  byId('passk').hidden = byId('passk-link').hidden = !sampled.length;
  if (!sampled.length) return;
  const ks = [...new Set(sampled.flatMap(({ run }) => Object.keys(run.pass_at).map(Number)))].sort((a, b) => a - b);
  plot(byId('passk-plot'), 'pass@k over k', (svg, point) => {
    const x = scale(ks, LEFT, WIDTH - RIGHT);
    const y = scale(sampled.flatMap(({ run }) => Object.values(run.pass_at).flatMap((one) => [one.value, ...(one.interval_95 || [])])), HEIGHT - BOTTOM, TOP, { zero: true });
    axes(svg, { ...x, ticks: ks }, y, 'k', 'pass@k', String, (v) => `${Math.round(1000 * v) / 10} %`);
    for (const { run, index } of sampled) {
      const line = ks.filter((k) => run.pass_at[k]);
      svg.append(svgElement('polyline', { fill: 'none', stroke: colourOf(index), points: line.map((k) => `${x.place(k)},${y.place(run.pass_at[k].value)}`).join(' ') }));
      for (const k of line) {
        const one = run.pass_at[k];
        point(index, x.place(k), y.place(one.value), { wilson_95: one.interval_95 }, y, `${run.letter}: ${run.name}\npass@${k} ${percent(one.value)} over ${one.instances} instances`, run.letter);
      }
    }
  });
  const rows = sampled.map(({ run }) => ({ cells: [`${run.letter}  ${run.name}`, ...ks.map((k) => (run.pass_at[k] ? percent(run.pass_at[k].value) + pointInterval(run.pass_at[k].interval_95) : '–'))] }));
  byId('passk-table').replaceChildren(table([['', 'text fold'], ...ks.map((k) => [`pass@${k}`, ''])], rows, 'pass@k'));
}

function drawSelections() {
  const rows = runs.flatMap((run) => run.selections.map((one) => ({
    cells: [
      `${run.letter}  ${run.name}`, one.rule + (one.submitted ? ' *' : ''), percent(one.pass_at_1), percent(one.selected),
      `${percent(one.pass_at_n)} (n = ${run.samples})`, one.gap_closed === null ? '–' : percent(one.gap_closed),
    ],
  })));
  byId('selection-table').hidden = !rows.length;
  const columns = [['', 'text fold'], ['rule', 'text'], ['pass@1', ''], ['selected', ''], ['pass@n', ''], ['gap closed', '']];
  byId('selection-table').replaceChildren(table(columns, rows, 'Selection among n samples, resolved (* submitted)'));
}

function drawTurns() {
  const continued = runs.filter((run) => run.feedback);
  byId('turns-table').hidden = !continued.length;
  const columns = [
    ['', 'text fold'], ['turns', ''], ['failed', ''], ['skipped', ''], ['now apply', ''], ['no longer apply', ''], ['cost', ''],
    ['per patch', ''], ['tokens in', ''], ['tokens out', ''],
  ];
  const rows = continued.map((run) => {
    const turns = run.feedback;
    return {
      cells: [
        `${run.letter}  ${run.name}`, ...['turns', 'failed', 'skipped', 'fixed', 'broken'].map((key) => count(turns[key])),
        dollars(turns.cost_usd), turns.cost_per_fixed_usd === null ? '–' : dollars(turns.cost_per_fixed_usd),
        count(turns.input_tokens), count(turns.output_tokens),
      ],
    };
  });
  byId('turns-table').replaceChildren(table(columns, rows, 'Further turns (feedback): patches, and what they cost'));
}

function drawOverlap() {
  const largest = Math.max(1, ...data.overlap.map((row) => row.instances));
  const rows = data.overlap.slice(0, 40).map((row) => {
    const bar = element('span', { class: 'bars' });
    bar.style.width = `${Math.max(0.2, (14 * row.instances) / largest)}rem`;
    const who = row.solved_by.length ? `solved by ${row.solved_by.join(', ')}${row.solved_by.length < runs.length ? ' only' : ''}` : 'solved by none';
    return {
      cells: [
        ...runs.map((run) => element('span', { class: row.solved_by.includes(run.letter) ? 'dot on' : 'dot', role: 'img', 'aria-label': row.solved_by.includes(run.letter) ? `${run.letter} solved` : `${run.letter} did not` })),
        element('button', { type: 'button', text: count(row.instances), 'aria-label': `${row.instances} instances ${who}: list them`, onclick: () => listOverlap(row.solved_by, who) }),
        bar,
      ],
    };
  });
  byId('overlap-table').replaceChildren(table([...runs.map((run) => [run.letter, 'text']), ['instances', ''], ['', 'text']], rows, 'Overlap of solved instances'));
}

function drawTests() {
  const failures = data.pairs.some((pair) => pair.without_infrastructure_failures);
  byId('tests').hidden = byId('tests-link').hidden = !data.pairs.length;
  byId('tests-hint').textContent = `By ${METRICS[data.metric]}, over the instances that both runs have. Holm correction for ${data.pairs.length} pair(s); ` +
    `resampling: ${count(data.resamples)} draws, seed ${data.seed}. Bold: below 0.05 after correction.`;
  const columns = [['1st', 'text'], ['2nd', 'text'], ['common', ''], ['both solved', ''], ['only 1st', ''], ['only 2nd', ''], ['neither', ''], ['rate difference (2nd − 1st)', ''],
    ['p', ''], ['p (Holm)', ''], ['test', 'text'], ...(failures ? [['without infrastructure failures', '']] : []), ['cost per instance (2nd − 1st)', ''], ['p (Holm)', '']];
  const strong = (p) => (p === null ? '–' : element('span', { class: p < 0.05 ? 'significant' : 'weak', text: pValue(p) }));
  const points = (value) => `${value >= 0 ? '+' : '−'}${fixed(Math.abs(100 * value))} points`;
  const without = (test) => {
    if (test === null) return '–';
    return test.difference === null ? 'no instance left' : `${points(test.difference)}${pointInterval(test.difference_95)}, p ${pValue(test.p)} over ${count(test.instances)}`;
  };
  const rows = data.pairs.map((pair) => {
    const cost = pair.cost_per_instance_usd;
    return {
      cells: [pair.first, pair.second, count(pair.common_instances), count(pair.both), count(pair.first_only), count(pair.second_only), count(pair.neither),
        points(pair.rate_difference) + pointInterval(pair.difference_95), pValue(pair.p), strong(pair.p_holm), pair.test, ...(failures ? [without(pair.without_infrastructure_failures)] : []),
        cost === null ? '–' : `${dollars(cost.difference)} [${dollars(cost.bootstrap_95[0])} to ${dollars(cost.bootstrap_95[1])}]`, strong(pair.cost_p_holm)],
    };
  });
  byId('tests-table').replaceChildren(table(columns, rows, 'Paired tests'));
}

// ---- the list of instances

const PAGE = 200;
const list = { search: '', show: 'all', exactly: null, label: '', limit: PAGE, shown: names };

const differs = (name) => new Set(data.instances[name].filter((value) => value !== null)).size > 1;
const solvers = (name) => runs.filter((_, index) => data.instances[name][index] > 0).map((run) => run.letter);

const FILTERS = {
  all: ['all', () => true],
  differ: ['the runs differ', differs],
  none: ['solved by none', (name) => !solvers(name).length],
  every: ['solved by every run', (name) => solvers(name).length === runs.length],
};

function listOverlap(letters, label) {
  Object.assign(list, { exactly: letters.join(' '), label, show: 'all', search: '', limit: PAGE });
  drawInstances();
  byId('instances').scrollIntoView();
  byId('search').focus({ preventScroll: true });
}

/** A run's cell for an instance: the share of samples that solved it, or why there is none. */
function mark(cells) {
  if (!cells.length) return element('span', { class: 'weak', text: '', title: 'no record' });
  const solved = cells.filter((cell) => cell.solved).length;
  const title = cells.map((cell) => [cell.status, cell.finish, cell.patch, cell.error].filter(Boolean).join(' ')).join('; ');
  if (cells.length > 1) return element('span', { class: solved ? 'yes' : 'no', title, text: `${solved}/${cells.length}` });
  const [cell] = cells;
  if (cell.solved) return element('span', { class: 'yes', title, text: '✓ yes' });
  if (cell.status !== 'completed') return element('span', { class: 'weak', title, text: cell.status });
  return element('span', { class: 'no', title, text: cell.patch === 'none' ? '✗ no patch' : '✗ no' });
}

function drawInstances() {
  const search = element('input', { id: 'search', type: 'search', placeholder: 'part of an id', 'aria-label': 'Filter instances by id' });
  search.value = list.search;
  search.addEventListener('input', () => { Object.assign(list, { search: search.value, limit: PAGE }); drawRows(); });
  const exactly = list.exactly === null ? [] : [element('button', {
    type: 'button', text: `${list.label} ✕`, 'aria-label': `Show all again, not only those ${list.label}`, onclick: () => { list.exactly = null; drawInstances(); },
  })];
  byId('instances-controls').replaceChildren(search,
    choice('show', Object.entries(FILTERS).map(([key, [text]]) => [key, text]), list.show, (show) => { Object.assign(list, { show, limit: PAGE }); drawRows(); }), ...exactly);
  drawRows();
}

function drawRows() {
  const query = list.search.trim().toLowerCase();
  list.shown = names.filter((name) => name.toLowerCase().includes(query) && FILTERS[list.show][1](name) &&
    (list.exactly === null || solvers(name).join(' ') === list.exactly));
  const rows = list.shown.slice(0, list.limit).map((name) => ({
    cells: [element('a', { href: `#${encodeURIComponent(name)}`, text: name }), ...data.cells[name].map(mark)],
  }));
  byId('instances-count').textContent = `${count(list.shown.length)} of ${count(names.length)}`;
  const made = table([['instance', 'text'], ...runs.map((run) => [run.letter, ''])], rows, 'Instances');
  const more = list.shown.length > list.limit
    ? [element('button', { type: 'button', text: `show ${count(Math.min(PAGE, list.shown.length - list.limit))} more`, onclick: () => { list.limit += PAGE; drawRows(); } })]
    : [];
  byId('instances-table').replaceChildren(made, ...more);
}

// ---- one instance

const view = { name: null, left: 0, right: Math.min(1, runs.length - 1), chosen: false, sampleLeft: 0, sampleRight: 0 };

/** Unpacks the texts of an instance from its element: base64 of zlib of JSON. */
async function details(name) {
  const packed = Uint8Array.from(atob(byId(`detail-${numbers.get(name)}`).textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate'));
  return JSON.parse(await new Response(stream).text());
}

function patchText(patch) {
  const kind = (line) => {
    if (/^(diff |--- |\+\+\+ |index |new file|deleted file|rename |similarity )/.test(line)) return 'file';
    return { '+': 'add', '-': 'del', '@': 'hunk' }[line[0]] || '';
  };
  return element('pre', { tabindex: 0, 'aria-label': 'patch' }, ...patch.replace(/\n$/, '').split('\n').map((line) => element('span', { class: kind(line), text: `${line}\n` })));
}

function side(run, cell, text, label) {
  const article = element('article', { 'aria-label': `${label}: run ${run.letter}` }, element('h3', { text: `${run.letter}  ${run.name}` }));
  if (!cell) return filled(article, {}, [element('p', { class: 'hint', text: 'This run has no record of the instance.' })]);
  const facts = [
    ['status', cell.status], ['finish', cell.finish], ['patch', cell.patch], ['resolved', cell.resolved === null ? null : cell.resolved ? 'yes' : 'no'],
    ['tokens', `${count(cell.in)} in, ${count(cell.out)} out`], ['cost', dollars(cell.cost)], ['latency', seconds(cell.latency)],
  ].filter(([, value]) => value !== null);
  article.append(element('dl', {}, ...facts.flatMap(([term, value]) => [element('dt', { text: term }), element('dd', { text: value })])));
  for (const note of text.notes) article.append(element('p', { class: 'hint', text: note }));
  article.append(element('h3', { text: 'Patch' }), text.patch ? patchText(text.patch) : element('p', { class: 'hint', text: 'none' }),
    element('h3', { text: 'Answer' }), text.answer ? element('pre', { tabindex: 0, 'aria-label': 'answer', text: text.answer }) : element('p', { class: 'hint', text: 'none' }));
  return article;
}

function folded(title, content) {
  return element('details', {}, element('summary', { text: title }), content);
}

async function drawView() {
  const { name } = view;
  byId('view-title').textContent = name;
  const at = list.shown.indexOf(name);
  const step = (by) => element('button', {
    type: 'button', text: by < 0 ? '← previous' : 'next →', disabled: at < 0 || !list.shown[at + by], onclick: () => go(list.shown[at + by]),
  });
  byId('view-buttons').replaceChildren(step(-1), step(1), element('button', { type: 'button', text: 'close', onclick: () => byId('view').close() }));
  const options = runs.map((run, index) => [String(index), `${run.letter}  ${run.name}`]);
  const cells = data.cells[name];
  const samples = (key, runKey) => (cells[view[runKey]].length > 1
    ? [choice('sample', cells[view[runKey]].map((cell, index) => [String(index), `${cell.sample}${cell.solved ? ' ✓' : ''}`]), String(view[key]), (value) => { view[key] = Number(value); drawView(); })]
    : []);
  byId('view-controls').replaceChildren(
    choice('left', options, String(view.left), (value) => { Object.assign(view, { left: Number(value), chosen: true, sampleLeft: 0 }); go(name); }), ...samples('sampleLeft', 'left'),
    ...(runs.length > 1 ? [choice('right', options, String(view.right), (value) => { Object.assign(view, { right: Number(value), chosen: true, sampleRight: 0 }); go(name); }), ...samples('sampleRight', 'right')] : []));
  const texts = await details(name);
  if (view.name !== name) return; // the user chose another instance meanwhile
  const sides = [['left', 'sampleLeft'], ...(runs.length > 1 ? [['right', 'sampleRight']] : [])];
  byId('view-columns').replaceChildren(...sides.map(([runKey, sampleKey]) => {
    const index = view[runKey];
    const sample = Math.min(view[sampleKey], Math.max(0, cells[index].length - 1));
    return side(runs[index], cells[index][sample], texts.runs[index][sample], runKey);
  }));
  byId('view-task').replaceChildren(element('h3', { text: 'Task' }),
    ...(texts.gold ? [folded('gold patch', patchText(texts.gold))] : []),
    texts.prompt ? folded(`prompt, ${count(texts.prompt.length)} characters`, element('pre', { tabindex: 0, text: texts.prompt }))
      : element('p', { class: 'hint', text: 'This page does not contain the prompt.' }));
}

/** The URL fragment of an instance: `#ID`, with the two runs if the user chose them. */
function address(name) {
  return `#${encodeURIComponent(name)}${view.chosen ? `&left=${runs[view.left].letter}&right=${runs[view.right].letter}` : ''}`;
}

function go(name) {
  if (window.location.hash === address(name)) drawView();
  else window.location.hash = address(name);
}

/** Opens the instance that the URL fragment names, or closes the view. */
function follow() {
  const [first, ...rest] = window.location.hash.slice(1).split('&');
  const name = decoded(first);
  if (!numbers.has(name)) {
    view.name = null;
    if (byId('view').open) byId('view').close();
    return;
  }
  const keys = new Map(rest.map((part) => part.split('=')));
  for (const key of ['left', 'right']) {
    const index = runs.findIndex((run) => run.letter === keys.get(key));
    if (index >= 0) Object.assign(view, { [key]: index, chosen: true });
  }
  if (!view.chosen) {
    const recorded = runs.map((_, index) => index).filter((index) => data.cells[name][index].length);
    view.left = recorded[0];
    view.right = recorded[1] ?? runs.findIndex((_, index) => index !== view.left);
    if (view.right < 0) view.right = view.left;
  }
  if (view.name !== name) Object.assign(view, { name, sampleLeft: 0, sampleRight: 0 });
  if (!byId('view').open) byId('view').showModal();
  byId('view').scrollTop = 0;
  drawView();
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function start() {
  const y = data.metric;
  const costs = runs.some((run) => run.cost_usd);
  drawRuns();
  drawCost({ x: costs ? 'cost' : runs.some((run) => run.wall_s !== null) ? 'time' : 'tokens', y, logarithmic: false });
  drawSweep({ y });
  drawPassAt();
  drawSelections();
  drawTurns();
  drawOverlap();
  drawTests();
  drawInstances();
  byId('view').addEventListener('close', () => {
    const { name } = view;
    view.name = null;
    if (numbers.has(decoded(window.location.hash.slice(1).split('&')[0]))) window.history.replaceState(null, '', '#instances');
    const link = name && document.querySelector(`#instances-table a[href="#${CSS.escape(encodeURIComponent(name))}"]`);
    if (link) link.focus();
  });
  byId('view').addEventListener('keydown', (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
    const by = { j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = by && list.shown[list.shown.indexOf(view.name) + by];
    if (next) go(next);
  });
  window.addEventListener('hashchange', follow);
  follow();
}

start();
