// A saved schedule, stepped forth and back: the programs' lines, the steps, the rows, and the serial orders beside them.
import { offerSizes } from "./size.js";

const byId = (id) => document.getElementById(id);
const SIGNS = { broken: "✗ ", error: "✗ ", safe: "✓ ", "needs retry": "? ", inconclusive: "? " };

function make(tag, options = {}, ...children) {
  const { kind, ...attributes } = options;
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

document.documentElement.classList.add("js");
offerSizes(() => {});
const told = await (await fetch(document.body.dataset.result)).json();
let walk = null;
let at = 0;

// Where the visitor is; the address says it, so that it survives a reload and can be sent as a link.

function go(id, step) {
  const chosen = told.walks.find((one) => one.id === id) || told.walks[0];
  const isOther = chosen !== walk;
  walk = chosen;
  at = Math.max(0, Math.min(walk.steps.length, step));
  const query = new URLSearchParams({ schedule: walk.id, step: at });
  history.replaceState(null, "", `?${query.toString().replaceAll("%2F", "/").replaceAll("%3A", ":")}`);
  if (isOther) drawWalk();
  drawStep();
}

function drawWalk() {
  byId("verdict").textContent = `${SIGNS[walk.verdict] || ""}${walk.title}: ${walk.sentence}`;
  byId("verdict").className = `lead ${walk.verdict.replace(" ", "-")}`;
  byId("case").value = walk.id;
  byId("note").textContent = walk.note;
  byId("replay").textContent = walk.replay;
  byId("replay").parentElement.hidden = !walk.replay;
  drawSources();
  drawGrid();
  drawSerial();
}

function drawStep() {
  byId("back").disabled = at === 0;
  byId("next").disabled = at === walk.steps.length;
  byId("where").textContent = say();
  markSources();
  markGrid();
  drawTables();
}

function say() {
  if (at === 0) return `Before the first of ${walk.steps.length} steps.`;
  const step = walk.steps[at - 1];
  const what = word(step.statements.at(-1) || step.kind);
  const waits = step.waits_for.length ? ` ${step.participant} waits for ${step.waits_for.join(" and ")}.` : "";
  const goes = step.goes_on.length ? ` ${step.goes_on.join(" and ")} can go on.` : "";
  const end = at === walk.steps.length ? " This is the end." : "";
  return `Step ${at} of ${walk.steps.length}, ${step.participant}: ${what}${what.endsWith(".") ? "" : "."}${waits}${goes}${end}`;
}

const word = (text) => (text === "leave" ? "its session ends" : text);

// The programs. Where several are the same program, it is there once; a line has the name of who stands in it.

let lines = [];

function drawSources() {
  lines = [];
  const groups = new Map();
  for (const name of Object.keys(walk.names)) {
    const source = walk.background.sources[name];
    const key = source ? JSON.stringify(source) : "";
    if (!groups.has(key)) groups.set(key, { source, names: [] });
    groups.get(key).names.push(name);
  }
  byId("sources").lastElementChild.replaceChildren(...[...groups.values()].map(drawSource));
}

function drawSource({ source, names }) {
  const title = names.map((name) => `${name}: ${walk.names[name]}`).join(", ");
  const figure = make("figure", { kind: "source" }, make("figcaption", {}, source ? `${source.file} (${title})` : title));
  const found = source
    ? source.lines.map((text, index) => ({ number: source.first_line + index, text }))
    : linesOfSteps(names);
  const list = make("ol");
  const box = make("div", { kind: "code", tabindex: "0", role: "group", "aria-label": title }, list);
  for (const { number, text } of found) {
    const who = make("span", { kind: "who" });
    const line = make("li", {}, make("span", { kind: "number" }, String(number)), who, make("span", { kind: "text" }, text || " "));
    list.append(line);
    lines.push({ line, who, names, box, key: source ? `${source.file}:${number}` : text });
  }
  const elsewhere = make("p", { kind: "note elsewhere" });
  figure.append(box, elsewhere);
  lines.push({ elsewhere, names, keys: new Set(lines.filter((one) => one.box === box).map((one) => one.key)) });
  return figure;
}

// Of a program whose lines are not in the file, what its steps say of it.
function linesOfSteps(names) {
  const found = new Map();
  for (const step of walk.steps) {
    if (!names.includes(step.participant)) continue;
    const text = keyOf(step);
    if (!found.has(text)) found.set(text, { number: found.size + 1, text });
  }
  return [...found.values()];
}

const keyOf = (step) => [step.line, step.text || step.statements.join("; ")].filter(Boolean).join("  ");

// The last step that each participant has taken by now.
function standing() {
  const found = new Map();
  for (const step of walk.steps.slice(0, at)) found.set(step.participant, step);
  return found;
}

function markSources() {
  const stands = standing();
  const now = at ? walk.steps[at - 1] : null;
  for (const one of lines) {
    const here = one.names.filter((name) => {
      const step = stands.get(name);
      return step && !one.elsewhere && (one.key === step.line || one.key === keyOf(step));
    });
    if (one.elsewhere) {
      const away = one.names.filter((name) => stands.has(name) && stands.get(name).line && !one.keys.has(stands.get(name).line) && !one.keys.has(keyOf(stands.get(name))));
      one.elsewhere.textContent = away.map((name) => `${name} is in ${stands.get(name).line}: ${stands.get(name).text}`).join(" · ");
      continue;
    }
    const isNow = Boolean(now && here.includes(now.participant));
    one.line.className = isNow ? "now" : here.length ? "stands" : "";
    one.who.textContent = here.join("");
    if (isNow) reveal(one.box, one.line, one.box.clientHeight / 3);
  }
}

// The steps: a column for each participant, a row for each step. Between a wait and its end stands that it waits.

let rows = [];

function drawGrid() {
  const others = walk.steps.map((step) => step.participant).filter((name) => !(name in walk.names));
  const names = [...Object.keys(walk.names), ...new Set(others)];
  const head = make("tr", {}, make("th", { scope: "col" }, "step"), ...names.map((name) => make("th", { scope: "col" }, walk.names[name] ? `${name}: ${walk.names[name]}` : "time")));
  const waiting = new Map();
  rows = walk.steps.map((step, index) => {
    const button = make("button", { type: "button", "aria-label": `go to step ${index + 1}` }, String(index + 1));
    button.addEventListener("click", () => go(walk.id, index + 1));
    const row = make("tr", {}, make("th", { scope: "row" }, button));
    for (const name of names) {
      const cell = make("td");
      if (name === step.participant) {
        cell.className = step.waits_for.length ? "took waits" : "took";
        for (const text of step.statements) cell.append(make("p", {}, word(text)));
        if (step.line) cell.append(make("p", { kind: "line" }, step.line));
        if (step.waits_for.length) cell.append(make("p", { kind: "wait" }, `waits for ${step.waits_for.join(" and ")}`));
        if (step.waits_for.length) waiting.set(name, true);
      } else if (step.goes_on.includes(name)) {
        waiting.delete(name);
        cell.className = "took";
        cell.append(make("p", { kind: "line" }, "goes on"), ...(step.then[name] || []).map((text) => make("p", {}, text)));
      } else if (waiting.has(name)) {
        cell.className = "waits";
        cell.append(make("p", { kind: "wait" }, "waits"));
      }
      row.append(cell);
    }
    return row;
  });
  byId("steps").lastElementChild.replaceChildren(make("table", { kind: "grid" }, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function markGrid() {
  rows.forEach((row, index) => {
    row.className = index + 1 === at ? "now" : index + 1 > at ? "later" : "";
    if (index + 1 === at) row.setAttribute("aria-current", "step");
    else row.removeAttribute("aria-current");
  });
  if (at) reveal(byId("steps").lastElementChild, rows[at - 1]);
  else byId("steps").lastElementChild.scrollTop = 0;
}

// Scroll only what has its own bar: the page stays where it is.
function reveal(box, inner, margin = 48) {
  if (box.scrollHeight <= box.clientHeight) return;
  const top = inner.offsetTop; // the box is positioned: it is counted from there
  if (top < box.scrollTop + margin) box.scrollTop = top - margin;
  else if (top + inner.offsetHeight + margin > box.scrollTop + box.clientHeight) box.scrollTop = top + inner.offsetHeight + margin - box.clientHeight;
}

// The rows: what is committed now, what the last commit changed, and at the end what no serial order has.

function stateAt(step) {
  let tables = walk.background.tables;
  let since = 0;
  walk.steps.slice(0, step).forEach((one, index) => {
    if (!Object.keys(one.tables).length) return;
    tables = one.tables;
    since = index + 1;
  });
  return { tables, since };
}

// Rows by their first column; of several with the same, by their turn.
function keyed(table) {
  const turns = new Map();
  return new Map((table ? table.rows : []).map((row) => {
    const turn = (turns.get(row[0]) || 0) + 1;
    turns.set(row[0], turn);
    return [`${row[0]} ${turn}`, row];
  }));
}

function drawTables() {
  const { tables, since } = stateAt(at);
  const before = since ? stateAt(since - 1).tables : tables;
  const isEnd = at === walk.steps.length && ["broken", "error"].includes(walk.verdict);
  const parts = Object.entries(tables).map(([name, table]) => drawTable(name, table, {
    before: since === at ? before[name] : table,
    serial: isEnd ? walk.background.serial.map((one) => one.tables[name]) : [],
  }));
  const when = since ? `What is committed after step ${since}${since === at ? "" : `, still so after step ${at}`}.` : "What is committed at the beginning.";
  byId("rows-title").hidden = byId("serial-title").hidden = !parts.length;
  byId("tables").replaceChildren(...(parts.length ? [make("p", { kind: "note" }, when)] : []), ...parts, ...(at === walk.steps.length ? tellEnd(walk.background.ended, walk.verdict) : []));
}

function drawTable(name, table, { before, serial }) {
  const old = keyed(before);
  const others = serial.map(keyed);
  const body = [...keyed(table)].map(([key, row]) => make("tr", {}, ...row.map((value, index) => {
    const varies = walk.background.varying.includes(`${name}.${table.columns[index]}`);
    const was = old.get(key);
    const isChanged = Boolean(before) && before !== table && (!was || was[index] !== value);
    const differs = others.length > 0 && !varies && others.every((other) => !other.has(key) || other.get(key)[index] !== value);
    return make("td", { kind: [isChanged && "changed", differs && "differs"].filter(Boolean).join(" ") }, value === null ? "null" : value, ...(differs ? [make("span", { kind: "sign", title: "no serial order has this" }, " ✗")] : []));
  })));
  const head = make("tr", {}, ...table.columns.map((column) => make("th", { scope: "col" }, column)));
  const more = table.left_out ? ` (and ${table.left_out.toLocaleString("en")} more rows)` : "";
  return make("div", { kind: "scroll", tabindex: "0", role: "group", "aria-label": `table ${name}` }, make("table", { kind: "told" }, make("caption", {}, `${name}${more}`), make("thead", {}, head), make("tbody", {}, ...body)));
}

const tellEnd = (ended, verdict) => ended.map((line) => make("p", { kind: `ended ${verdict.replace(" ", "-")}` }, line));

function drawSerial() {
  const groups = new Map();
  for (const one of walk.background.serial) {
    const key = JSON.stringify(one.tables);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(one);
  }
  byId("serial").replaceChildren(...[...groups.values()].map((group) => make("figure", { kind: "order" },
    make("figcaption", {}, group.map(nameOrder).join(", and ")),
    ...Object.entries(group[0].tables).map(([name, table]) => drawTable(name, table, { before: table, serial: [] })),
    ...tellOrders(group).map((line) => make("p", { kind: "note" }, line)))));
}

const nameOrder = (one) => [...one.order].join(" then ");

// How each order ended: once, where all ended alike.
function tellOrders(group) {
  const alike = new Set(group.map((one) => [...one.ended].sort().join("\n"))).size === 1;
  return alike ? group[0].ended : group.map((one) => `${nameOrder(one)}: ${one.ended.join(", ")}`);
}

// What the visitor does.

if (told.walks.length) {
  byId("case").replaceChildren(...told.walks.map((one) => new Option(`${SIGNS[one.verdict] || ""}${one.title}`, one.id)));
  byId("choice").hidden = told.walks.length < 2;
  byId("case").addEventListener("change", () => go(byId("case").value, Infinity));
  byId("back").addEventListener("click", () => go(walk.id, at - 1));
  byId("next").addEventListener("click", () => go(walk.id, at + 1));
  byId("shortest").addEventListener("click", () => go(told.shortest, Infinity));
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches("select, input")) return;
    if (event.target.scrollWidth > event.target.clientWidth && event.target.matches(".code, .scroll")) return; // it scrolls
    const step = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    go(walk.id, step);
  });
  const asked = new URLSearchParams(location.search);
  const step = asked.get("step");
  go(asked.get("schedule") || told.shortest, step !== null && /^\d{1,4}$/.test(step) ? Number(step) : Infinity);
}
