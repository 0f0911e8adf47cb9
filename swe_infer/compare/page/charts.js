// Charts, drawn by Observable Plot. Every figure in a chart is in a table of the page too, so a chart is one image for
// a screen reader.

import { byId, element, shortened } from './dom.js';

const COLOURS = 8;
const SYMBOLS = ['circle', 'square', 'triangle', 'diamond', 'star', 'hexagon'];
const FEW = 6; // runs that are labelled with more than their letters

const colourOf = (index) => `var(--run-${index % COLOURS})`;
const symbolOf = (index) => SYMBOLS[Math.floor(index / COLOURS) % SYMBOLS.length];
const percent = (value) => `${Math.round(1000 * value) / 10} %`;

const MOST_DESCRIBED = 12;

/** A chart in words: its title with the figures of its points, unless there are many. */
function described(title, parts) {
  return parts.length <= MOST_DESCRIBED ? `${title}: ${parts.join('; ')}` : `${title}. The figures are in the tables of this page.`;
}

/** Draws a chart as wide as its figure, again whenever that changes. `draw` returns a plot for a width. */
function chart(id, title, description, draw, ...more) {
  const figure = byId(id);
  const holder = element('div', { class: 'canvas' });
  figure.replaceChildren(element('figcaption', { text: title }), holder, ...more);
  let drawn = 0;
  const fit = () => {
    const width = Math.floor(holder.clientWidth);
    if (!width || width === drawn) return;
    drawn = width;
    const svg = draw(width);
    svg.querySelector('style')?.remove(); // blocked by the content security policy; style.css has these rules
    for (const part of svg.querySelectorAll('[aria-label]')) part.removeAttribute('aria-label'); // of groups without a role
    svg.setAttribute('role', 'img');
    svg.setAttribute('aria-label', description);
    holder.replaceChildren(svg);
  };
  figure.observer?.disconnect();
  figure.observer = new ResizeObserver(fit);
  figure.observer.observe(holder);
  fit();
}

const base = (width, height) => ({
  width,
  height,
  className: 'chart',
  style: { fontSize: '12px', fontFamily: 'inherit', background: 'transparent', overflow: 'visible' },
  color: { type: 'identity' },
});

/** An axis of rates with their intervals. It begins at 0 unless all are far from it. */
function rateAxis(rates) {
  const low = Math.min(1, ...rates.map((rate) => rate.low ?? rate.value));
  const high = Math.max(0, ...rates.map((rate) => rate.high ?? rate.value));
  const begin = low > 0.3 ? Math.floor(20 * low - 0.5) / 20 : 0;
  return { label: null, domain: [begin, Math.min(1, Math.max(0.05, high + 0.04 * (high - begin)))], tickFormat: percent, grid: true };
}

/** An axis of costs, times or tokens, which begins at 0 unless all values are far from it. */
function costDomain(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = Math.max(0.12 * (high - low), 0.06 * high) || 1;
  return [low > 0.5 * high ? Math.max(0, low - margin) : 0, high + margin];
}

/** Names with the colours and symbols of their points. */
function legend(names) {
  return element('ul', { class: 'legend' }, ...names.map(([index, name]) => {
    const swatch = element('span', { class: `swatch ${symbolOf(index)}` });
    swatch.style.background = colourOf(index);
    return element('li', {}, swatch, shortened(name, 60));
  }));
}

const legendOfRuns = (points) => legend(points.map((point) => [point.index, `${point.letter}  ${point.label}`]));

const withIndex = (figures) => figures.points.map((point, index) => ({ ...point, index, colour: colourOf(index), symbol: symbolOf(index) }));

// ---- rates

export function drawRates(figures, metric, name) {
  const rows = withIndex(figures).filter((point) => point.rates[metric])
    .map((point) => ({ ...point, ...point.rates[metric], row: String(point.index) }));
  const texts = new Map(rows.map((row) => [row.row, row]));
  const title = `${name}, with 95 % intervals`;
  chart('rates-plot', title, described(title, rows.map((row) => `${row.letter} ${row.text}`)), (width) => {
    const most = Math.floor((width * 0.42 - 18) / 6.6); // characters of a label
    const label = (row) => {
      const start = `${texts.get(row).letter}  `;
      return start + shortened(texts.get(row).label, Math.max(6, most - start.length));
    };
    const longest = Math.max(...rows.map((row) => label(row.row).length));
    return Plot.plot({
      ...base(width, Math.max(120, 58 + (rows.length > 20 ? 18 : 26) * rows.length)),
      marginLeft: 18 + 6.6 * longest,
      marginRight: 24,
      x: rateAxis(rows),
      y: { label: null, domain: rows.map((row) => row.row), tickFormat: label, tickSize: 0 },
      marks: [
        Plot.ruleY(rows.filter((row) => row.low !== null), { y: 'row', x1: 'low', x2: 'high', stroke: 'colour', strokeWidth: 2.5, strokeOpacity: 0.55 }),
        Plot.dot(rows, { y: 'row', x: 'value', fill: 'colour', symbol: 'symbol', r: 5, tip: 'y', title: (row) => `${row.letter}  ${row.label}\n${row.text}` }),
      ],
    });
  });
}

// ---- cost and rate

const COSTS = { cost: 'cost per instance', time: 'time per instance', tokens: 'output tokens per instance' };

/** The axes for which two runs or more have values. */
export const costAxes = (figures) => Object.entries(COSTS).filter(([key]) =>
  figures.points.filter((point) => point.per_instance[key]?.value).length > 0);

export function drawCosts(figures, axis, metric, name, logarithmic) {
  const rows = withIndex(figures).filter((point) => point.rates[metric] && point.per_instance[axis])
    .map((point) => ({ ...point, ...point.rates[metric], x: point.per_instance[axis].value, cost: point.per_instance[axis].text }))
    .filter((row) => !logarithmic || row.x > 0);
  const front = rows.filter((row) => !rows.some((other) => other.x <= row.x && other.value >= row.value && (other.x < row.x || other.value > row.value)));
  front.sort((a, b) => a.x - b.x);
  const title = `${name} over ${COSTS[axis]}, with the Pareto frontier`;
  const description = described(`${title}, which has`, front.map((row) => `${row.letter} ${row.text} at ${row.cost}`));
  chart('cost-plot', title, description, (width) => {
    const height = Math.min(460, Math.max(280, width * 0.6));
    const plot = Plot.plot({
      ...base(width, height),
      marginLeft: 52,
      marginRight: 24,
      marginBottom: 48,
      x: {
        label: COSTS[axis], labelArrow: 'none', labelAnchor: 'center', labelOffset: 40, ...(logarithmic ? { type: 'log' } : { domain: costDomain(rows.map((row) => row.x)) }), ticks: Math.max(3, width / 110), nice: true,
        tickFormat: axis === 'cost' ? (value) => `$${Number(value.toPrecision(3))}` : axis === 'time' ? (value) => `${Number(value.toPrecision(3))} s` : (value) => value.toLocaleString('en'),
      },
      y: rateAxis(rows),
      marks: [
        Plot.line(front, { x: 'x', y: 'value', stroke: 'currentColor', strokeOpacity: 0.5, strokeDasharray: '5 4' }),
        Plot.ruleX(rows.filter((row) => row.low !== null), { x: 'x', y1: 'low', y2: 'high', stroke: 'colour', strokeOpacity: 0.4, strokeWidth: 1.5 }),
        Plot.dot(rows, { x: 'x', y: 'value', fill: 'colour', symbol: 'symbol', r: 6, tip: true, title: (row) => `${row.letter}  ${row.label}\n${row.text}\n${row.cost}` }),
      ],
    });
    const [x, y] = [plot.scale('x'), plot.scale('y')];
    const few = rows.length <= FEW && width > 480;
    placeLabels(plot, width, height, rows.map((row) => ({
      x: x.apply(row.x), y: y.apply(row.value), letter: row.letter,
      text: few ? `${row.letter}  ${shortened(row.label, 30)}` : row.letter,
      first: front.includes(row),
    })));
    return plot;
  });
}

/** Adds the labels of points where they overlap neither a point nor another label; those of the frontier first. */
function placeLabels(plot, width, height, points) {
  const taken = points.map(({ x, y }) => [x - 7, y - 7, x + 7, y + 7]);
  const free = (box) => box[0] >= 50 && box[2] <= width && box[1] >= 0 && box[3] <= height - 50 &&
    !taken.some((other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1]);
  const svg = d3.select(plot);
  for (const { x, y, letter, text } of [...points].sort((a, b) => b.first - a.first)) {
    const place = [text, letter].flatMap((label) => {
      const size = 6.9 * label.length + 4;
      return [[x + 9, y - 8], [x - 9 - size, y - 8], [x + 6, y - 24], [x - 6 - size, y - 24], [x + 6, y + 8], [x - 6 - size, y + 8]]
        .map(([left, top]) => ({ label, box: [left, top, left + size, top + 16] }));
    }).find(({ box }) => free(box));
    if (!place) continue;
    taken.push(place.box);
    svg.append('text').attr('class', 'label').attr('text-anchor', 'start').attr('x', place.box[0] + 2).attr('y', place.box[1] + 12).text(place.label);
  }
}

// ---- curves

/** The swept keys that can be an axis, or name the lines. */
export const sweptAxes = (figures) => figures.swept.filter((key) => key.numeric);

export function drawSweep(figures, axisKey, lineKey, metric, name, logarithmic) {
  const axis = figures.swept.find(({ key }) => key === axisKey);
  const lines = figures.swept.find(({ key }) => key === lineKey);
  const all = withIndex(figures)
    .filter(({ index, rates }) => rates[metric] && axis.values[index] !== null && (!logarithmic || axis.values[index] > 0))
    .map((point) => ({ ...point, ...point.rates[metric], x: axis.values[point.index], line: lines ? lines.texts[point.index] : '' }));
  const names = [...new Set(all.map((row) => row.line))];
  const rows = all.map((row) => ({ ...row, lineColour: colourOf(names.indexOf(row.line)), lineSymbol: symbolOf(names.indexOf(row.line)) }));
  const means = names.flatMap((line) => [...d3.rollup(rows.filter((row) => row.line === line), (own) => d3.mean(own, (row) => row.value), (row) => row.x)]
    .map(([x, value]) => ({ x, value, line, lineColour: colourOf(names.indexOf(line)) })).sort((a, b) => a.x - b.x));
  const title = `${name} over ${axisKey}${lines ? `, a line for each ${lineKey}` : ''}`;
  const description = described(title, rows.map((row) => `${axisKey} ${axis.texts[row.index]}${lines ? `, ${row.line}` : ''}: ${row.text}`));
  chart('sweep-plot', title, description, (width) => Plot.plot({
    ...base(width, Math.min(420, Math.max(260, width * 0.45))),
    marginLeft: 52,
    marginRight: 24,
    marginBottom: 48,
    x: { label: axisKey, labelArrow: 'none', labelAnchor: 'center', labelOffset: 40, type: logarithmic ? 'log' : 'linear', nice: true, ticks: Math.max(3, width / 110), tickFormat: (value) => value.toLocaleString('en', { maximumSignificantDigits: 4 }) },
    y: rateAxis(rows),
    marks: [
      Plot.ruleX(rows.filter((row) => row.low !== null), { x: 'x', y1: 'low', y2: 'high', stroke: 'lineColour', strokeOpacity: 0.4, strokeWidth: 1.5 }),
      Plot.line(means, { x: 'x', y: 'value', z: 'line', stroke: 'lineColour', strokeWidth: 2 }),
      Plot.dot(rows, { x: 'x', y: 'value', fill: 'lineColour', symbol: 'lineSymbol', r: 5, tip: true, title: (row) => `${row.letter}  ${row.label}\n${axisKey} = ${axis.texts[row.index]}${lines ? `\n${lineKey} = ${row.line}` : ''}\n${row.text}` }),
    ],
  }), ...(lines ? [legend(names.map((line, index) => [index, `${lineKey} = ${line}`]))] : []));
}

// ---- pass@k

const MOST_AREAS = 5;

export function drawPassAt(figures) {
  const points = withIndex(figures);
  const rows = points.flatMap((point) => figures.curves[point.index].map((one) => ({ ...point, ...one })));
  const ks = [...new Set(rows.map((row) => row.k))].sort((a, b) => a - b);
  const drawn = points.filter(({ index }) => figures.curves[index].length);
  const title = 'pass@k: at least one of k samples succeeds, unbiased';
  chart('passk-plot', title, `${title}. The figures are in the table that follows.`, (width) => Plot.plot({
    ...base(width, Math.min(400, Math.max(260, width * 0.42))),
    marginLeft: 52,
    marginRight: 24,
    marginBottom: 48,
    x: { label: 'k', labelArrow: 'none', labelAnchor: 'center', labelOffset: 40, type: ks.length > 5 ? 'log' : 'linear', ticks: ks, tickFormat: String },
    y: rateAxis(rows),
    marks: [
      ...(drawn.length <= MOST_AREAS ? [Plot.areaY(rows, { x: 'k', y1: 'low', y2: 'high', z: 'index', fill: 'colour', fillOpacity: 0.1 })] : []),
      Plot.line(rows, { x: 'k', y: 'value', z: 'index', stroke: 'colour', strokeWidth: 2 }),
      Plot.dot(rows, { x: 'k', y: 'value', fill: 'colour', symbol: 'symbol', r: 5, tip: true, title: (row) => `${row.letter}  ${row.label}\npass@${row.k}: ${row.text}` }),
    ],
  }), legendOfRuns(drawn));
}

// ---- repositories

const MOST_REPOSITORIES = 15;
const MOST_WITH_INTERVALS = 6;

export function drawRepositories(figures) {
  const shown = figures.repositories.rows.slice(0, MOST_REPOSITORIES);
  const points = withIndex(figures);
  const rows = shown.flatMap((repository) => points.flatMap((point) => (repository.rates[point.index]
    ? [{ ...point, ...repository.rates[point.index], repository: repository.name, row: String(point.index) }] : [])));
  const apart = points.length <= MOST_WITH_INTERVALS;
  const rest = figures.repositories.rows.length - shown.length;
  const title = figures.repositories.title + (rest > 0 ? `; the ${shown.length} largest` : '');
  chart('repositories-plot', title, `${title}. The figures are in the table that follows.`, (width) => {
    const most = Math.max(8, Math.floor((width * 0.3) / 6.6));
    const name = (text) => (text.length <= most ? text : shortened(text.slice(text.lastIndexOf('/') + 1), most));
    const longest = Math.max(...shown.map((repository) => name(repository.name).length));
    const where = apart ? { fy: 'repository', y: 'row' } : { y: 'repository' };
    const names = { domain: shown.map((repository) => repository.name), label: null, tickFormat: name, tickSize: 0 };
    return Plot.plot({
      ...base(width, 50 + shown.length * (apart ? 10 + 13 * points.length : 26)),
      marginLeft: 20 + 6.6 * longest,
      marginRight: 24,
      x: rateAxis(rows),
      ...(apart ? { fy: { ...names, axis: 'left', padding: 0.15 }, y: { axis: null, domain: points.map((point) => String(point.index)) } } : { y: names }),
      marks: [
        ...(apart ? [Plot.ruleY(rows.filter((row) => row.low !== null), { ...where, x1: 'low', x2: 'high', stroke: 'colour', strokeWidth: 2, strokeOpacity: 0.45 })] : []),
        Plot.dot(rows, { ...where, x: 'value', fill: 'colour', symbol: 'symbol', r: 4, tip: true, title: (row) => `${row.repository}\n${row.letter}  ${row.label}\n${row.text}` }),
      ],
    });
  }, legendOfRuns(points));
}
