// The page: it listens to the server, and shows what it hears in the picture, the cards and the lines.
import { Cards } from "./cards.js";
import { drawMoney } from "./money.js";
import { PlanForm } from "./plan.js";
import { Player } from "./player.js";
import { offerSizes } from "./size.js";
import { Stage, sign } from "./stage.js";

const AGAIN_MS = 1000;
const LINES_MS = 2000;
const BUTTONS_MAX = 8;
const byId = (id) => document.getElementById(id);
const sameCell = (one, [strategy, topology]) => one.strategy === strategy && one.topology === topology;

document.documentElement.classList.add("js");
const stages = [new Stage(byId("stages")), new Stage(byId("stages"))];
const player = new Player(() => stages.filter((stage) => !stage.figure.hidden));
const cards = new Cards(byId("cells"), openStory);
const feed = new Map();
let recording = null;
let source = { cells: [], films: [], recorded: "" };
let now = { state: "connecting" };
let chosen = null;
let linesDrawn = 0;

// What is shown.

function pickStrategy() {
  const names = source.cells.map((cell) => cell.strategy);
  if (chosen && names.includes(chosen)) return chosen;
  if (now.running) return now.running[0];
  return names.includes("thread-lock") ? "thread-lock" : names.find((name) => name !== "none") || names[0];
}

// Two topologies: the smallest and the largest, or the one that runs in place of the latter.
function pickCells(strategy) {
  const cells = source.cells.filter((cell) => cell.strategy === strategy);
  cells.sort((a, b) => a.instances * 1000 + a.threads - b.instances * 1000 - b.threads);
  const picked = cells.length > 1 ? [cells[0], cells.at(-1)] : cells;
  const running = now.running && cells.find((cell) => sameCell(cell, now.running));
  if (running && !picked.includes(running)) picked[picked.length - 1] = running;
  return picked;
}

const isRunning = (cell) => Boolean(now.running && sameCell(cell, now.running) && !cell.verdict);

function filmOf(cell) {
  if (isRunning(cell)) return now.film && now.film.strategy === cell.strategy && now.film.topology === cell.topology ? now.film : null;
  return source.films.find((film) => film.strategy === cell.strategy && film.topology === cell.topology) || null;
}

function showPicture() {
  const strategy = pickStrategy();
  const cells = strategy ? pickCells(strategy) : [];
  stages.forEach((stage, at) => {
    stage.figure.hidden = at >= cells.length;
    if (at < cells.length) stage.show(cells[at], filmOf(cells[at]), isRunning(cells[at]) ? now : null);
  });
  byId("stages").className = cells.length === 1 ? "alone" : "";
  showStrategies(strategy);
}

function showStrategies(strategy) {
  const parent = byId("strategies");
  const names = [...new Set(source.cells.map((cell) => cell.strategy))];
  const marks = (name) => pickCells(name).map((cell) => sign(cell.verdict) || "·").join(" ");
  if (names.length > BUTTONS_MAX) {
    let select = parent.querySelector("select");
    if (!select) {
      select = document.createElement("select");
      select.setAttribute("aria-label", "strategy in the picture");
      select.addEventListener("change", () => choose(select.value));
      parent.replaceChildren(select);
    }
    select.replaceChildren(...names.map((name) => new Option(`${name}  ${marks(name)}`, name, false, name === strategy)));
    return;
  }
  const there = new Map([...parent.querySelectorAll("button")].map((button) => [button.value, button]));
  const buttons = names.map((name) => {
    const button = there.get(name) || document.createElement("button");
    if (!there.has(name)) {
      button.type = "button";
      button.value = name;
      button.addEventListener("click", () => choose(name));
    }
    button.textContent = `${name} ${marks(name)}`;
    button.setAttribute("aria-pressed", String(name === strategy));
    return button;
  });
  if (parent.children.length !== buttons.length || buttons.some((one, at) => parent.children[at] !== one)) parent.replaceChildren(...buttons);
}

function choose(name) {
  chosen = name;
  endPlaying();
  showPicture();
  if (now.running) playLive();
}

function showLines(force) {
  const time = performance.now();
  if (!force && time - linesDrawn < LINES_MS) return;
  linesDrawn = time;
  const cells = source.cells.map((cell) => (isRunning(cell) && now.live ? { ...cell, line: now.live.line } : cell));
  drawMoney(byId("money"), cells);
}

function showSource() {
  const text = source.recorded
    ? `A recording of ${source.recorded}: ${source.transfers.toLocaleString("en")} transfers over ${source.accounts} accounts, bankrun ${source.bankrun}.`
    : now.state === "running" ? "Live, in slow motion." : source.started ? `The run of ${source.started.slice(0, 16).replace("T", " ")}.` : "";
  byId("source").textContent = text;
  byId("play").hidden = now.state !== "idle" && !source.recorded;
}

function showAll() {
  cards.show(source.cells);
  showPicture();
  showLines(true);
  showSource();
}

// Playing.

function play() {
  if (player.plays) {
    endPlaying();
    showPicture();
    return;
  }
  const names = [...new Set(source.cells.map((cell) => cell.strategy))].filter((name) => source.films.some((film) => film.strategy === name));
  const turn = chosen ? [chosen] : names.length > 4 ? [pickStrategy()] : names;
  const before = chosen;
  const { top } = byId("stages").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) byId("stages").scrollIntoView();
  const next = (at) => {
    if (at >= turn.length) {
      chosen = before;
      endPlaying();
      showPicture();
      return;
    }
    chosen = turn[at];
    showPicture();
    const pace = player.play(() => next(at + 1));
    byId("source").textContent = `${source.recorded ? `A recording of ${source.recorded}. ` : ""}Slow motion: a second here is ${(pace * 1000).toFixed(0)} ms there.`;
    byId("play").textContent = "Stop playing";
  };
  next(0);
}

function endPlaying() {
  player.stop();
  byId("play").textContent = source.recorded ? "Play the recording" : "Play it slowly";
  showSource();
}

function playLive() {
  if (!now.film || !stages.some((stage) => stage.film && stage.cell && isRunning(stage.cell))) return;
  player.play(() => {
    if (now.running) {
      showPicture();
      playLive();
    }
  }, true);
}

// What the server says.

function hear(told) {
  const before = now;
  const film = told.film || (before.running && told.running && sameCell({ strategy: before.running[0], topology: before.running[1] }, told.running) ? before.film : null);
  now = { ...told, film };
  if (told.cells) {
    const theirs = told.cells.length ? { cells: told.cells, films: told.films, started: told.started, recorded: "" } : recording;
    source = theirs;
    if (told.state === "starting" || told.state === "waiting") chosen = null;
    endPlaying();
    showAll();
  } else if (String(before.running) !== String(now.running)) {
    endPlaying();
    cards.show(source.cells);
    showPicture();
    showSource();
  }
  if (told.film && !player.plays) {
    showPicture();
    playLive();
  }
  showNow(before);
}

function showNow(before) {
  const idle = now.state === "idle";
  byId("start").disabled = !idle;
  byId("stop").disabled = idle || now.state === "stopping" || now.state === "connecting";
  const where = now.state === "running" ? `Run ${now.number} of ${now.total}: ` : "";
  write(byId("status"), where + (now.sentence || ""));
  if (before.trouble !== now.trouble && (now.trouble || before.trouble)) write(byId("trouble"), now.trouble);
  byId("progress").hidden = now.state !== "running";
  byId("progress").value = now.transfers ? now.done / now.transfers : 0;
  byId("report").hidden = !source.started;
  const cell = now.running && source.cells.find((one) => sameCell(one, now.running));
  if (cell && !cell.verdict) {
    cards.tell(cell, now);
    for (const stage of stages) if (!stage.figure.hidden && stage.cell === cell) stage.tell(now);
    showLines(false);
  }
  if (before.state !== now.state) showSource();
  showWorkers();
  showScenes();
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function showWorkers() {
  const parent = byId("workers");
  const names = now.instances || [];
  parent.hidden = !names.length;
  if (parent.dataset.names !== names.join()) {
    parent.dataset.names = names.join();
    parent.replaceChildren(...names.map((name) => {
      const row = document.createElement("span");
      row.className = "worker";
      const label = document.createElement("span");
      label.dataset.name = name;
      row.append(label, makeButton("Pause 3 s", `pause ${name}`, () => ask(`pause/${name}`)), makeButton("Kill", `kill ${name}`, () => ask(`kill/${name}`)));
      return row;
    }));
  }
  for (const label of parent.querySelectorAll("[data-name]")) {
    const { name } = label.dataset;
    const applied = now.live ? `: ${(now.live.applied[name] || 0).toLocaleString("en")} applied` : "";
    write(label, `${name}${applied}${(now.silent || []).includes(name) ? ", does not answer" : ""}`);
  }
}

function makeButton(text, label, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.setAttribute("aria-label", label);
  button.addEventListener("click", act);
  return button;
}

// New ones on top, old ones away; the others stay what they are: one may be under a finger.
function showScenes() {
  if (now.state === "running" && !now.live) return;
  const scenes = (now.live && now.live.scenes) || [];
  const numbers = new Set(scenes.map((scene) => scene.number));
  for (const [number, button] of feed) {
    if (!numbers.has(number)) {
      button.remove();
      feed.delete(number);
    }
  }
  for (const { number, text } of scenes) {
    if (feed.has(number)) continue;
    const button = makeButton(text, text, () => show(`scene/${number}`));
    feed.set(number, button);
    byId("scenes").prepend(button);
  }
  byId("feed").hidden = !scenes.length;
}

// What the visitor asks for.

async function ask(path, body = "") {
  byId("trouble").textContent = "";
  byId("notice").textContent = "";
  try {
    const answer = await fetch(`/${path}`, { method: "POST", body });
    const said = await answer.json();
    byId(answer.ok ? "notice" : "trouble").textContent = said.done || said.trouble || "";
  } catch {
    byId("trouble").textContent = "The server does not answer.";
  }
}

async function show(path) {
  try {
    const answer = await fetch(`/${path}`);
    openDialog(await answer.json());
  } catch {
    byId("trouble").textContent = "The server does not answer.";
  }
}

function openStory(cell) {
  chosen = cell.strategy;
  endPlaying();
  showPicture();
  if (!source.recorded) {
    show(`story?${new URLSearchParams({ strategy: cell.strategy, topology: cell.topology })}`);
    return;
  }
  openDialog(source.stories[source.cells.indexOf(cell)]);
}

function openDialog({ title, lines, svg, trouble }) {
  byId("story-title").textContent = title || trouble;
  byId("story-lines").textContent = (lines || []).join("\n");
  byId("story-lines").hidden = !lines;
  byId("story-picture").innerHTML = svg || ""; // made by our server with an XML library: a name in it is text
  byId("story-picture").hidden = !svg;
  byId("story").showModal();
}

// The connection. A page that is not looked at asks for nothing.

let socket = null;

function connect() {
  if (socket || document.hidden) return;
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
  const mine = socket;
  mine.addEventListener("message", (event) => {
    byId("gone").hidden = true;
    hear(JSON.parse(event.data));
  });
  mine.addEventListener("close", () => {
    if (socket !== mine) return;
    socket = null;
    if (document.hidden) return;
    if (!source.cells.length) hear({ state: "connecting", cells: [] });
    byId("gone").hidden = false;
    setTimeout(connect, AGAIN_MS);
  });
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) {
    connect();
  } else if (socket) {
    const mine = socket;
    socket = null;
    mine.close();
    endPlaying();
  }
});

function redraw() {
  for (const stage of stages) if (!stage.figure.hidden) stage.layout();
  showLines(true);
}

let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  redraw();
});

byId("play").addEventListener("click", play);
byId("stop").addEventListener("click", () => ask("stop"));
new PlanForm(byId("plan"), (query) => ask("start", query));
offerSizes(redraw);
recording = await (await fetch(new URL("recording.json", import.meta.url))).json();
connect();
