// Draws the sections, now and whenever there are new data.

import { byId, check, choice, element, hint, keepingFocus } from './dom.js';
import { homeAddress, ServerError, source } from './source.js';
import { costAxes, drawCosts, drawPassAt, drawRates, drawRepositories, drawSweep, sweptAxes } from './charts.js';
import { figureTable, figureTables, overlapTable } from './tables.js';
import { drawInstances, listExactly, setInstances } from './instances.js';
import { follow, refreshInstance, setInstance, startInstance } from './instance.js';

const METRICS = { resolved: 'resolved', applies: 'patch applies' };
const chosen = { metric: null, axis: null, logarithmic: false, swept: null, line: null, sweptLogarithmic: false };

let figures, index;

function drawSummary() {
  byId('title').textContent = document.title = figures.title;
  const [first, ...rest] = figures.summary;
  byId('sentences').replaceChildren(...(first ? [element('p', { class: 'lead', text: first })] : []), ...rest.map((text) => element('p', { text })));
  byId('notes').replaceChildren(...(figures.notes.length
    ? [element('h3', { text: 'Notes' }), element('ul', { class: 'notes' }, ...figures.notes.map((text) => element('li', { text })))] : []));
}

function drawConfiguration() {
  const { configuration } = figures.tables;
  byId('configuration').hidden = figures.points.length < 2 || !configuration.rows.length;
  byId('configuration-table').replaceChildren(figureTable(configuration));
}

/** The metrics that a run has, the compared one first. */
const metrics = () => [figures.metric, ...Object.keys(METRICS).filter((key) => key !== figures.metric)]
  .filter((key) => figures.points.some((point) => point.rates[key]));

const redrawn = (draw, changes) => (value) => {
  changes(value);
  keepingFocus(draw);
};

function drawRatesAndCosts() {
  const known = metrics();
  const metric = known.includes(chosen.metric) ? chosen.metric : known[0];
  const axes = costAxes(figures);
  const axis = axes.some(([key]) => key === chosen.axis) ? chosen.axis : axes[0]?.[0];
  byId('rates-controls').replaceChildren(
    ...(known.length > 1 ? [choice('metric', 'Rate', known.map((key) => [key, METRICS[key]]), metric, redrawn(drawCharts, (value) => { chosen.metric = value; }))] : []),
    ...(axes.length > 1 ? [choice('axis', 'Over', axes, axis, redrawn(drawCharts, (value) => { chosen.axis = value; }))] : []),
    ...(axes.length ? [check('logarithmic', 'logarithmic', chosen.logarithmic, redrawn(drawCharts, (value) => { chosen.logarithmic = value; }))] : []));
  byId('rates-plot').hidden = !known.length;
  byId('cost-plot').hidden = !known.length || !axes.length;
  if (known.length) drawRates(figures, metric, METRICS[metric]);
  if (known.length && axes.length) drawCosts(figures, axis, metric, METRICS[metric], chosen.logarithmic);
  byId('rates-tables').replaceChildren(...figureTables(figures, ['outcomes', 'costs', 'without_failures', 'pools', 'turns']));
}

function drawSwept() {
  const axes = sweptAxes(figures);
  byId('sweep').hidden = !axes.length;
  if (!axes.length) return;
  const known = metrics();
  const metric = known.includes(chosen.metric) ? chosen.metric : known[0];
  const axis = axes.some(({ key }) => key === chosen.swept) ? chosen.swept : axes[0].key;
  const others = figures.swept.filter(({ key }) => key !== axis);
  const line = chosen.line === '' || others.some(({ key }) => key === chosen.line) ? chosen.line : others[0]?.key ?? '';
  byId('sweep-controls').replaceChildren(
    ...(axes.length > 1 ? [choice('swept', 'Over', axes.map(({ key }) => [key, key]), axis, redrawn(drawCharts, (value) => { chosen.swept = value; }))] : []),
    ...(others.length ? [choice('line', 'A line for each', [['', '–'], ...others.map(({ key }) => [key, key])], line, redrawn(drawCharts, (value) => { chosen.line = value; }))] : []),
    check('swept-logarithmic', 'logarithmic', chosen.sweptLogarithmic, redrawn(drawCharts, (value) => { chosen.sweptLogarithmic = value; })));
  drawSweep(figures, axis, line, metric, METRICS[metric], chosen.sweptLogarithmic);
}

function drawCharts() {
  drawRatesAndCosts();
  drawSwept();
}

function drawSeveralSamples() {
  const curves = figures.curves.some((curve) => curve.length);
  const tables = figureTables(figures, ['pass_at', 'selections']);
  byId('passk').hidden = !tables.length;
  byId('passk-plot').hidden = !curves;
  if (curves) drawPassAt(figures);
  byId('passk-tables').replaceChildren(...tables);
}

function drawOverlap() {
  byId('overlap').hidden = figures.points.length < 2 || !figures.overlap.length;
  byId('overlap-hint').textContent = 'A number lists its instances.';
  byId('overlap-table').replaceChildren(...overlapTable(figures, listExactly));
}

function drawByRepository() {
  byId('repositories').hidden = !figures.repositories;
  if (!figures.repositories) return;
  drawRepositories(figures);
  const { title, rows } = figures.repositories;
  const table = figureTable({
    title, left: 1, columns: ['repository', ...figures.points.map(({ letter }) => letter)],
    rows: rows.map((row) => [row.name, ...row.rates.map((rate) => rate?.text ?? '-')]),
  });
  byId('repositories-table').replaceChildren(element('details', {}, element('summary', { text: 'Table' }), table));
}

function drawTests() {
  const tables = figureTables(figures, ['pairs', 'equivalence', 'pairs_without_failures', 'power', 'difficulty', 'prompt_length', 'edit_format', 'finish_reason']);
  byId('tests').hidden = !tables.length;
  byId('tests-tables').replaceChildren(...tables);
}

function drawSections() {
  const links = [...document.querySelectorAll('main > section')].filter((section) => !section.hidden)
    .map((section) => element('a', { href: `#${section.id}`, id: `to-${section.id}`, text: section.querySelector('h2').textContent }));
  byId('sections').replaceChildren(...(homeAddress ? [element('a', { href: homeAddress, text: 'All runs' })] : []), ...links);
}

function draw() {
  setInstances(figures, index);
  setInstance(figures, index);
  drawSummary();
  drawConfiguration();
  drawCharts();
  drawSeveralSamples();
  drawOverlap();
  drawByRepository();
  drawTests();
  drawInstances();
  drawSections();
}

async function start() {
  try {
    ({ figures, index } = await source.figuresAndIndex());
  } catch (error) {
    byId('sentences').replaceChildren(hint(`The data could not be loaded: ${error.message}`));
    return;
  }
  draw();
  startInstance();
  follow();
  let updated = new Date();
  source.watch(async (data) => {
    ({ figures, index } = data);
    updated = new Date();
    keepingFocus(draw);
    await refreshInstance();
  }, (error) => {
    const problem = error instanceof ServerError ? error.message : 'The server does not answer';
    const text = error ? `${problem}; the figures are of ${updated.toLocaleTimeString()}.` : '';
    if (byId('status').textContent !== text) byId('status').textContent = text;
  });
}

start();
