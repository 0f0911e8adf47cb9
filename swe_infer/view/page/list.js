// The list of runs. It polls for the rows that changed, and keeps what the reader has chosen.
// Everything that comes from a run is set as text, never as markup.

const POLL_MS = 2000;
const FIRST_POLL_MS = 300; // until the server has read every run once
const ROWS_SHOWN = 500;
const MOST_COMPARED = 100; // the server's limit

const FILTERS = ["search", "state", "sweep"];
const STATES = ["running", "complete", "interrupted", "failed", "damaged"];
const byId = (id) => document.getElementById(id);

const runs = new Map();
const selected = new Set(JSON.parse(sessionStorage.getItem("selected") ?? "[]"));
let cursor = "";
const saved = JSON.parse(sessionStorage.getItem("list") ?? "{}"); // for the way back from a comparison
let order = saved.order ?? { key: "modified", descending: true };
let shown = [];
let limit = ROWS_SHOWN;

// Texts sort ascending at first, numbers descending.
const COLUMNS = [
  { label: "Run", key: "name", text: true },
  { label: "State", key: "state", text: true, fill: fillState },
  { label: "Progress", key: "share", fill: fillProgress },
  { label: "Cost", key: "cost_usd", fill: fillCost },
  { label: "Errors", key: "failed", fill: fillErrors },
  { label: "Resolved", key: "resolvedValue", fill: (cell, run) => fillRate(cell, run.resolved) },
  { label: "Applies", key: "appliesValue", fill: (cell, run) => fillRate(cell, run.applies) },
  { label: "So far", key: "finishedValue", fill: (cell, run) => fillRate(cell, run.finished) },
  { label: "Model", key: "model", text: true },
  { label: "Dataset", key: "dataset", text: true },
  { label: "Prompt", key: "prompt", text: true },
  { label: "Sweep", key: "sweepText", text: true },
  { label: "Changed", key: "modified", fill: fillChanged },
];

// Columns that are hidden while no run has a value.
const OPTIONAL = {
  resolvedValue: (run) => run.resolved,
  finishedValue: (run) => run.finished,
  failed: (run) => run.failed || run.skipped,
  prompt: (run) => run.prompt,
  sweepText: (run) => run.sweepText,
};

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function number(value) {
  return value === null || value === undefined ? "" : value.toLocaleString("en-US");
}

// Breaks are allowed after separators alone, so that no word of a name is cut.
function appendName(parent, name, separators = /(?<=[/_\-,;])/) {
  for (const part of name.split(separators)) parent.append(element("span", part, "part"));
}

function fillState(cell, run) {
  cell.append(element("span", run.state, `state-${STATES.includes(run.state) ? run.state : "damaged"}`));
  if (run.stopped_by) cell.append(element("span", run.stopped_by, "problem"));
}

function fillProgress(cell, run) {
  if (!run.total) return;
  if (run.state !== "complete") {
    const bar = element("progress");
    bar.max = run.total;
    bar.value = run.total - (run.remaining ?? 0);
    bar.setAttribute("aria-hidden", "true");
    cell.append(bar, " ");
  }
  cell.append(element("span", `${number(run.done)} / ${number(run.total)}`));
}

function fillRate(cell, rate) {
  if (!rate) return;
  const at = rate.text.indexOf("[");
  cell.append(element("span", at < 0 ? rate.text : rate.text.slice(0, at)));
  if (at >= 0) cell.append(element("span", rate.text.slice(at), "interval"));
}

function fillCost(cell, run) {
  if (run.cost === null) return;
  cell.append(element("span", run.cost));
  if (run.possibly_billed) cell.append(element("span", ` + up to ${run.possibly_billed}`, "interval"));
}

function fillErrors(cell, run) {
  if (run.failed) {
    const kinds = Object.entries(run.errors).map(([kind, count]) => `${kind} ${number(count)}`);
    cell.append(element("span", kinds.length ? kinds.join(", ") : `${number(run.failed)} failed`, "no"));
  }
  if (run.skipped) cell.append(element("span", `${run.failed ? ", " : ""}${number(run.skipped)} skipped`, "weak"));
}

function fillChanged(cell, run) {
  if (!run.modified) return;
  const time = element("time", age(Date.now() / 1000 - run.modified));
  time.dateTime = new Date(run.modified * 1000).toISOString();
  time.title = new Date(run.modified * 1000).toLocaleString();
  cell.append(time);
}

function age(seconds) {
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit} ago`;
  }
  return seconds < 10 ? "now" : `${Math.floor(seconds)} s ago`;
}

// ---- the table: rows are kept, and only those whose content changed are filled again

const rows = new Map();

function rowOf(run) {
  let row = rows.get(run.id);
  if (row && row.run === run) return row;
  if (!row) {
    row = { tr: element("tr"), box: element("input") };
    row.box.type = "checkbox";
    row.box.addEventListener("change", () => select([run.id], row.box.checked));
    rows.set(run.id, row);
  }
  row.run = run;
  const hadFocus = row.tr.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
  const choice = element("td", null, "select");
  row.box.dataset.focus = "box";
  row.box.disabled = run.state === "damaged";
  row.box.setAttribute("aria-label", `Select ${run.name}`);
  choice.append(row.box);
  const name = element("th");
  name.scope = "row";
  if (run.state === "damaged") {
    appendName(name, run.name);
  } else {
    const link = element("a");
    link.href = comparison([run.id]);
    link.dataset.focus = "link";
    appendName(link, run.name);
    name.append(link);
  }
  if (run.differs) {
    const differs = element("span", null, "differs");
    appendName(differs, run.differs, /(?<= )/);
    name.append(differs);
  }
  if (run.error) name.append(element("span", run.error, "problem"));
  const cells = COLUMNS.slice(1).map((column) => {
    const cell = element("td", null, `${column.text ? "text " : ""}column-${column.key}`);
    cell.dataset.label = column.label;
    if (column.fill) column.fill(cell, run);
    else cell.textContent = run[column.key] ?? "";
    return cell;
  });
  row.changed = cells.at(-1);
  row.tr.replaceChildren(choice, name, ...cells);
  if (hadFocus) row.tr.querySelector(`[data-focus="${hadFocus}"]`)?.focus();
  return row;
}

function comparison(ids) {
  return `compare?${new URLSearchParams(ids.map((id) => ["run", id]))}`;
}

function matches(run) {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const state = byId("state").value;
  const sweep = byId("sweep").value;
  return (!state || run.state === state) && (!sweep || run.sweeps.includes(sweep))
    && words.every((word) => run.searched.includes(word));
}

// Runs in progress change all the time: among themselves they keep their places.
function valueOf(run) {
  return order.key === "modified" && run.state === "running" ? Number.MAX_VALUE : run[order.key];
}

function compareBy(a, b) {
  const [x, y] = [valueOf(a), valueOf(b)];
  const [xNone, yNone] = [x === null || x === undefined || x === "", y === null || y === undefined || y === ""];
  if (xNone || yNone) return xNone - yNone || a.name.localeCompare(b.name);
  const difference = typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
  return (order.descending ? -difference : difference) || a.name.localeCompare(b.name, "en", { numeric: true });
}

function draw() {
  const focused = document.activeElement;
  shown = [...runs.values()].filter(matches).sort(compareBy);
  const body = byId("body");
  const wanted = shown.slice(0, limit).map((run) => rowOf(run).tr);
  wanted.forEach((tr, index) => {
    if (body.children[index] !== tr) body.insertBefore(tr, body.children[index] ?? null);
  });
  while (body.children.length > wanted.length) body.lastElementChild.remove();
  if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
  const rest = shown.length - wanted.length;
  byId("more").replaceChildren();
  if (rest > 0) {
    const button = element("button", `Show ${number(rest)} more`);
    button.type = "button";
    button.addEventListener("click", () => { limit += ROWS_SHOWN * 10; draw(); });
    byId("more").append(button);
  } else if (!shown.length) {
    byId("more").textContent = runs.size ? "No run matches." : "There are no runs in this folder yet.";
  }
  for (const [key, isUsed] of Object.entries(OPTIONAL)) {
    byId("runs").classList.toggle(`without-${key}`, ![...runs.values()].some(isUsed));
  }
  drawCounts();
  drawSelection();
}

function drawCounts() {
  const counts = STATES.map((state) => [state, [...runs.values()].filter((run) => run.state === state).length]);
  const cost = [...runs.values()].reduce((sum, run) => sum + (run.cost_usd ?? 0), 0);
  const unknown = [...runs.values()].filter((run) => run.cost !== null && run.cost_usd === null).length;
  const parts = counts.filter(([, count]) => count).map(([state, count]) => `${number(count)} ${state}`);
  byId("counts").textContent = runs.size
    ? `${number(runs.size)} run${runs.size === 1 ? "" : "s"}: ${parts.join(", ")}; $${cost.toFixed(2)}`
    + `${unknown ? ` and ${number(unknown)} unknown cost${unknown === 1 ? "" : "s"}` : ""}` : "";
  document.title = `${counts[0][1] ? `(${counts[0][1]} running) ` : ""}Runs`;
}

function drawSelection() {
  const ids = [...runs.values()].filter((run) => selected.has(run.id) && run.state !== "damaged").sort(compareBy)
    .map((run) => run.id);
  for (const [id, row] of rows) row.box.checked = selected.has(id) && !row.box.disabled;
  const link = byId("compare");
  const possible = ids.length > 0 && ids.length <= MOST_COMPARED;
  link.setAttribute("aria-disabled", String(!possible));
  if (possible) link.href = comparison(ids);
  else link.removeAttribute("href");
  const excess = ids.length > MOST_COMPARED ? `; at most ${MOST_COMPARED} can be compared` : "";
  byId("selected").textContent = ids.length ? `${number(ids.length)} selected${excess}` : "";
}

function select(ids, chosen) {
  for (const id of ids) {
    if (chosen) selected.add(id);
    else selected.delete(id);
  }
  sessionStorage.setItem("selected", JSON.stringify([...selected]));
  drawSelection();
}

function drawHead() {
  const box = element("th", null, "select");
  box.append(element("span", "Select", "hidden"));
  byId("head").replaceChildren(box, ...COLUMNS.map((column) => {
    const head = element("th", null, `${column.text ? "text " : ""}column-${column.key}`);
    head.scope = "col";
    const button = element("button", column.label);
    button.type = "button";
    button.addEventListener("click", () => {
      const same = order.key === column.key;
      order = { key: column.key, descending: same ? !order.descending : !column.text };
      for (const [index, other] of COLUMNS.entries()) markSorted(byId("head").children[index + 1], other);
      save();
      draw();
    });
    head.append(button);
    markSorted(head, column);
    return head;
  }));
}

function save() {
  const chosen = FILTERS.map((id) => [id, byId(id).value]);
  sessionStorage.setItem("list", JSON.stringify({ ...Object.fromEntries(chosen), order }));
}

function markSorted(head, column) {
  if (order.key !== column.key) head.removeAttribute("aria-sort");
  else head.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
}

function drawOptions(choice, values) {
  const before = choice.value;
  const wanted = [...values].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  if (wanted.join("\n") === [...choice.options].slice(1).map((option) => option.value).join("\n")) return;
  choice.replaceChildren(choice.options[0], ...wanted.map((value) => {
    const option = element("option", value);
    option.value = value;
    return option;
  }));
  const value = before || saved[choice.id];
  choice.value = wanted.includes(value) ? value : "";
}

// ---- polling

function prepared(run) {
  const sweepText = run.sweeps.join(", ");
  return {
    ...run,
    sweepText,
    share: run.total ? (run.total - (run.remaining ?? 0)) / run.total : null,
    resolvedValue: run.resolved?.value,
    appliesValue: run.applies?.value,
    finishedValue: run.finished?.value,
    searched: [run.name, run.state, run.model, run.dataset, run.prompt, sweepText, run.differs].join(" ").toLowerCase(),
  };
}

async function poll() {
  let wait = POLL_MS;
  try {
    const response = await fetch(`data/runs.json?since=${encodeURIComponent(cursor)}`, { cache: "no-store" });
    if (!response.ok) throw new Error((await response.text()).trim());
    const data = await response.json();
    if (data.whole) {
      const ids = new Set(data.runs.map((run) => run.id));
      for (const id of runs.keys()) if (!ids.has(id)) forget(id);
    }
    for (const run of data.runs) runs.set(run.id, prepared(run));
    for (const id of data.removed) forget(id);
    cursor = data.cursor;
    byId("folder").textContent = data.folder;
    byId("notes").replaceChildren(...data.notes.map((note) => element("li", note)));
    if (data.whole || data.runs.length || data.removed.length) {
      drawOptions(byId("state"), STATES.filter((state) => [...runs.values()].some((run) => run.state === state)));
      drawOptions(byId("sweep"), new Set([...runs.values()].flatMap((run) => run.sweeps)));
      draw();
    } else {
      for (const [id, row] of rows) if (row.changed && runs.has(id)) refreshAge(row);
    }
    if (!data.complete) wait = FIRST_POLL_MS;
    setStatus("");
  } catch (error) {
    setStatus(error instanceof TypeError ? "The server does not answer. The figures are those of its last answer."
      : error.message);
  }
  setTimeout(next, wait);
}

function forget(id) {
  runs.delete(id);
  rows.get(id)?.tr.remove();
  rows.delete(id);
}

function refreshAge(row) {
  row.changed.replaceChildren();
  fillChanged(row.changed, row.run);
}

function setStatus(text) {
  const status = byId("status");
  status.hidden = !text;
  if (status.textContent !== text) status.textContent = text;
}

// A page in the background requests nothing, so that the server rests.
function next() {
  if (document.hidden) document.addEventListener("visibilitychange", next, { once: true });
  else poll();
}

drawHead();
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("search").value = saved.search ?? "";
for (const id of FILTERS) {
  byId(id).addEventListener("input", () => {
    limit = ROWS_SHOWN;
    delete saved[id];
    save();
    draw();
  });
}
byId("select-all").addEventListener("click", () => select(shown.filter((run) => run.state !== "damaged").map((run) => run.id), true));
byId("select-none").addEventListener("click", () => select([...selected], false));
next();
