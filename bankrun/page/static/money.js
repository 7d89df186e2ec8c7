// How the bank's total goes in every cell, in one frame: all panels have the same scale.
import { signed } from "./stage.js";

const NS = "http://www.w3.org/2000/svg";
const TOGETHER_MAX = 4; // with more strategies than this, each has a panel of its own
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];

function make(tag, attributes, text) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const kindOf = (cell) => cell.verdict || "running";

// Cells are sorted into panels: one for each topology, or, where that would be a tangle, one for each strategy.
function makePanels(cells) {
  const strategies = new Set(cells.map((cell) => cell.strategy));
  const together = strategies.size <= TOGETHER_MAX;
  const panels = new Map();
  for (const cell of cells) {
    const title = together ? cell.topology : cell.strategy;
    if (!panels.has(title)) panels.set(title, []);
    panels.get(title).push({ cell, name: together ? cell.strategy : cell.topology });
  }
  return { panels, together };
}

export function drawMoney(parent, cells) {
  const started = cells.filter((cell) => cell.line && cell.line.length > 1);
  const { panels, together } = makePanels(cells);
  parent.className = together ? "panels few" : "panels";
  const most = Math.max(50, ...started.flatMap((cell) => cell.line.map(([, drift]) => Math.abs(drift))));
  const figures = [...panels].map(([title, lines]) => {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = title;
    figure.append(caption);
    parent.append(figure);
    return { figure, lines, title };
  });
  parent.replaceChildren(...figures.map(({ figure }) => figure));
  for (const { figure, lines, title } of figures) figure.append(drawPanel(figure.clientWidth, title, lines, most, together));
}

function drawPanel(width, title, lines, most, together) {
  const unit = parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
  const height = (together ? 150 : 74) * unit;
  const left = 4;
  const named = lines.map(({ cell, name }) => ({ name, drift: cell.line ? cell.line.at(-1)[1] : 0 }));
  const labels = named.map(({ name, drift }) => `${name}${drift ? ` ${signed(drift)}` : ""}`);
  const right = Math.max(...labels.map((label) => label.length)) * 7 * unit + 14 * unit;
  const seconds = Math.max(0.1, ...lines.flatMap(({ cell }) => (cell.line || []).map(([at]) => at)));
  const x = (at) => left + (at / seconds) * (width - left - right);
  const y = (drift) => height / 2 - (drift / most) * (height / 2 - 10 * unit);
  const said = lines.map(({ cell, name }) => `${name} ${cell.line ? `off by ${signed(cell.line.at(-1)[1]) || "0"}` : "has not run"}`);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${title}: ${said.join("; ")}` });
  svg.append(make("line", { class: "opening", x1: left, x2: width - right, y1: y(0), y2: y(0) }));
  const ends = [];
  lines.forEach(({ cell }, at) => {
    if (!cell.line || cell.line.length < 2) return;
    const points = cell.line.map(([when, drift], i) => (i ? `H${x(when).toFixed(1)}V${y(drift).toFixed(1)}` : `M${x(when).toFixed(1)},${y(drift).toFixed(1)}`));
    svg.append(make("path", { class: `money-line ${kindOf(cell)}`, d: points.join(""), "stroke-dasharray": DASHES[at % DASHES.length] }));
    ends.push({ at: y(cell.line.at(-1)[1]), text: labels[at], kind: kindOf(cell) });
  });
  // Names stand at the end of their lines, moved apart where they would cover each other.
  ends.sort((a, b) => a.at - b.at);
  const apart = 14 * unit;
  ends.forEach((end, at) => { end.at = Math.max(end.at, at ? ends[at - 1].at + apart : apart); });
  const over = ends.length ? Math.max(0, ends.at(-1).at - height + 4 * unit) : 0;
  for (const end of ends) svg.append(make("text", { class: `end ${end.kind}`, x: width - right + 6, y: end.at - over + 4 * unit }, end.text));
  return svg;
}
