// One topology, drawn: broker, workers with their threads, Postgres with its accounts, and the lock where it lives.
import { Film } from "./film.js";

const NS = "http://www.w3.org/2000/svg";
const BOXES_MAX = 6;
const THREADS_MAX = 16;
const ACCOUNTS_MAX = 8;
const WORDS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];
const SIGNS = { safe: "✓", broken: "✗", inconclusive: "?" };

export const sign = (verdict) => SIGNS[verdict] || "";
export const count = (number) => WORDS[number] || number.toLocaleString("en");
export const number = (value) => value.toLocaleString("en");
export const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + number(Math.abs(value));

function make(tag, attributes = {}, ...children) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) {
    element.setAttribute(name, typeof value === "number" ? Math.round(value * 10) / 10 : value);
  }
  element.append(...children);
  return element;
}

const set = (element, name, value) => {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
};
const write = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

// A padlock, its body's middle at (x, y).
function drawLock(x, y, size) {
  const half = size / 2;
  return make("g", { class: "lock free", transform: `translate(${x.toFixed(1)},${y.toFixed(1)})` },
    make("path", { class: "shackle open", d: `M${-half * 0.62},0V${-half * 0.7}a${half * 0.62},${half * 0.7} 0 0 1 ${half * 1.24},0` }),
    make("path", { class: "shackle shut", d: `M${-half * 0.62},0V${-half * 0.5}a${half * 0.62},${half * 0.7} 0 0 1 ${half * 1.24},0V0` }),
    make("rect", { class: "body", x: -half, y: -half * 0.1, width: size, height: size * 0.75, rx: size * 0.12 }));
}

export class Stage {
  constructor(parent) {
    this.figure = document.createElement("figure");
    this.figure.className = "stage";
    this.title = document.createElement("figcaption");
    this.drawing = document.createElement("div");
    this.drawing.className = "drawing";
    this.caption = document.createElement("p");
    this.caption.className = "caption";
    this.figure.append(this.title, this.drawing, this.caption);
    parent.append(this.figure);
  }

  // Show a cell: what is known of it, and its film if there is one. Draws the telling moment.
  show(cell, film, now) {
    this.cell = cell;
    this.plain = film;
    this.now = now;
    this.film = film ? new Film(film, cell.place) : null;
    this.#write();
    this.layout();
  }

  #write() {
    const { cell, now } = this;
    const workers = `${count(cell.instances)} worker${cell.instances > 1 ? "s" : ""}`;
    const threads = `${count(cell.threads)} thread${cell.threads > 1 ? "s" : ""}${cell.instances > 1 ? " each" : ""}`;
    const name = document.createElement("b");
    name.textContent = `${workers[0].toUpperCase()}${workers.slice(1)}, ${threads}`;
    const shape = document.createElement("span");
    shape.className = "shape";
    shape.textContent = cell.topology;
    this.verdict = document.createElement("strong");
    this.title.replaceChildren(name, " ", shape, this.verdict);
    this.tell(now);
    this.caption.textContent = cell.caption;
  }

  // Say how the cell stands. `now` is what is seen of it while it runs.
  tell(now) {
    const { cell } = this;
    this.now = now;
    const live = now && now.live;
    let text = "has not run yet";
    if (cell.verdict) {
      const lost = cell.lost ? `${number(cell.lost)} of ${number(cell.postings)} postings lost` : "nothing lost";
      text = `${sign(cell.verdict)} ${cell.verdict}: ${cell.verdict === "broken" && !cell.lost ? cell.reason : lost}`;
    } else if (now) {
      const over = live && live.overwritten ? `, ${number(live.overwritten)} written over so far` : "";
      text = now.transfers ? `${number(now.done)} of ${number(now.transfers)} transfers${over}` : "begins";
    }
    write(this.verdict, text);
    set(this.verdict, "class", cell.verdict || (live && live.overwritten ? "broken" : "plain"));
    if (this.total) this.#tellTotal();
  }

  #tellTotal() {
    const live = this.now && this.now.live;
    const opening = live ? live.opening : this.cell.opening;
    const drift = live ? live.drift : this.cell.drift;
    write(this.total, opening === undefined ? "" : `total${live ? "" : " in the end"} ${number(opening + drift)}${drift ? ` (${signed(drift)})` : ""}`);
    set(this.total, "class", drift ? "small broken-text" : "small");
  }

  layout() {
    const { cell } = this;
    if (!cell) return;
    const width = Math.max(280, this.drawing.clientWidth);
    const unit = parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
    this.unit = unit;
    this.width = width;
    this.compact = width < 480 * unit;
    this.places = { threads: new Map(), accounts: new Map(), locks: [] };
    const back = make("g");
    const front = make("g");
    this.layers = { back, wires: make("g"), front, dots: make("g"), told: make("g") };
    const bottom = this.#layPostgres(back, front, this.#layWorkers(back, front, this.#layBroker(back)));
    const svg = make("svg", { viewBox: `0 0 ${width} ${Math.ceil(bottom)}`, width, height: Math.ceil(bottom), role: "img" });
    svg.setAttribute("aria-label", `The system with ${cell.strategy} on ${cell.topology}. ${cell.caption} ${this.verdict.textContent}.`);
    svg.append(back, this.layers.wires, front, this.layers.dots, this.layers.told);
    this.drawing.replaceChildren(svg);
    this.wires = [];
    this.dots = [];
    this.told = undefined;
    this.#tellTotal();
    this.still();
  }

  #label(parent, kind, text, x, y, anchor = "start") {
    const label = make("text", { class: kind, x, y, "text-anchor": anchor }, text);
    parent.append(label);
    return label;
  }

  // A lock with its words, beside each other around the middle x.
  #chip(parent, text, x, y, kind = "") {
    const { unit } = this;
    const wide = text.length * 6.6 * unit + (kind ? 16 : text ? 36 : 26) * unit;
    parent.append(make("rect", { class: `chip ${kind}`, x: x - wide / 2, y: y - 13 * unit, width: wide, height: 26 * unit, rx: 13 * unit }));
    if (!kind) {
      const lock = drawLock(text ? x - wide / 2 + 18 * unit : x, y, 14 * unit);
      parent.append(lock);
      this.#label(parent, "small strong", text, x - wide / 2 + 30 * unit, y + 4 * unit);
      return lock;
    }
    this.#label(parent, "small strong", text, x, y + 4 * unit, "middle");
    return null;
  }

  #layBroker(back) {
    const { width, unit, cell, compact } = this;
    const height = (compact ? 26 : 34) * unit;
    const line = 2 + height / 2 + 5 * unit;
    back.append(make("rect", { class: "block", x: 1, y: 2, width: width - 2, height, rx: 8 }));
    this.#label(back, "strong", "Redis", 12 * unit, line);
    this.#label(back, "small", "the queue of transfers", 62 * unit, line);
    if (cell.place === "redis") {
      const lock = this.#chip(back, "the lock", width - 60 * unit, 2 + height / 2);
      this.places.locks.push({ lock, box: null });
    }
    return 2 + height;
  }

  #layWorkers(back, front, above) {
    const { width, unit, cell, compact } = this;
    const shown = Math.min(cell.instances, compact ? 3 : BOXES_MAX);
    const gap = 12;
    const edge = cell.place === "host" ? 10 * unit : 1;
    const wide = shown === 1 ? Math.min(width * 0.62, 300 * unit) : (width - 2 * edge - gap * (shown - 1)) / shown;
    const left = (width - shown * wide - gap * (shown - 1)) / 2;
    const pitch = (compact ? 24 : 27) * unit;
    const threads = Math.min(cell.threads, shown > 3 ? THREADS_MAX / 2 : THREADS_MAX);
    const columns = Math.max(1, Math.min(threads, Math.floor((wide - 12) / pitch), threads > 8 ? 8 : 4));
    const rows = Math.ceil(threads / columns);
    this.drop = (compact ? 18 : 30) * unit;
    const top = above + this.drop;
    // The lock stands under the threads, or, where there is little room, beside the worker's name.
    const height = 28 * unit + rows * pitch + (compact ? 6 : 34) * unit;
    const foot = (x) => (compact ? [x + wide - 20 * unit, top + 15 * unit] : [x + wide / 2, top + height - 17 * unit]);
    const names = (this.film && this.film.boxes) || [];
    for (let box = 0; box < shown; box += 1) {
      const x = left + box * (wide + gap);
      const rests = cell.place === "queue" && box > 0;
      back.append(make("rect", { class: `box${rests ? " rests" : ""}`, x, y: top, width: wide, height, rx: 8 }));
      this.#label(back, "strong", names[box] || `w${box + 1}`, x + 10 * unit, top + 19 * unit);
      if (cell.threads > threads) this.#label(back, "small", `${threads} of ${cell.threads}`, x + wide - 6, top + 19 * unit, "end");
      for (let thread = 0; thread < threads; thread += 1) {
        const at = {
          x: x + wide / 2 + (thread % columns - (columns - 1) / 2) * pitch,
          y: top + 28 * unit + (Math.floor(thread / columns) + 0.5) * pitch,
        };
        const circle = make("circle", { class: "thread idle", cx: at.x, cy: at.y, r: 8.5 * unit });
        const pause = make("path", { class: "pause off", d: `M${at.x - 2.5 * unit},${at.y - 3.5 * unit}v${7 * unit}m${5 * unit},${-7 * unit}v${7 * unit}` });
        front.append(circle, pause);
        this.places.threads.set(`${box}/${thread}`, { ...at, circle, pause, top });
      }
      if (cell.place === "process") {
        this.places.locks.push({ lock: this.#chip(front, compact ? "" : "lock", ...foot(x)), box });
      } else if (cell.place === "queue" && box === 0) {
        this.#chip(front, compact ? "1" : "one thread", ...foot(x), "words");
      } else if (cell.place === "nowhere") {
        const [middle, line] = foot(x);
        this.#chip(front, "no lock", middle - (compact ? 18 * unit : 0), line, "empty");
      }
    }
    this.hidden = cell.instances - shown;
    if (this.hidden > 0) this.#label(back, "small", `and ${number(this.hidden)} more`, width - 4, top - 8 * unit, "end");
    if (cell.place === "host") {
      back.prepend(make("rect", { class: "host", x: left - 9 * unit, y: top - 9 * unit, width: shown * wide + gap * (shown - 1) + 18 * unit, height: height + 18 * unit, rx: 12 }));
      this.places.locks.push({ lock: this.#chip(front, "lock file of this host", width / 2, top + height + 9 * unit), box: null });
    }
    return top + height;
  }

  #layPostgres(back, front, above) {
    const { width, unit, cell, compact } = this;
    const top = above + (compact ? 56 : 92) * unit;
    const found = [...((this.film && this.film.accounts.values()) || [])].sort((a, b) => b.held.length - a.held.length);
    // All of a small bank, also those that the film does not have; of a large one the busiest.
    const last = Math.max(...found.map((account) => account.number), found.length ? 0 : ACCOUNTS_MAX);
    const all = Array.from({ length: Math.min(last, ACCOUNTS_MAX) }, (_, at) => ({ number: at + 1 }));
    const accounts = last > ACCOUNTS_MAX ? found.slice(0, ACCOUNTS_MAX).sort((a, b) => a.number - b.number)
      : all.map((account) => found.find((one) => one.number === account.number) || account);
    const columns = Math.min(accounts.length, width >= 8 * 66 * unit ? 8 : 4);
    const rows = Math.ceil(accounts.length / columns);
    const wide = (width - 16 * unit) / columns;
    const high = (compact ? 28 : 44) * unit;
    const pitch = high + 5 * unit;
    const height = 7 * unit + rows * pitch + 26 * unit;
    const line = top + height - 11 * unit;
    back.append(make("rect", { class: "block", x: 1, y: top, width: width - 2, height, rx: 8 }));
    this.#label(back, "strong", "Postgres", 12 * unit, line);
    this.total = this.#label(back, "small", "", width - 12 * unit, line, "end");
    if (cell.place === "database" || cell.place === "check") {
      const [text, kind] = cell.place === "database" ? ["the lock", ""] : ["checks for conflicts", "words"];
      const lock = this.#chip(front, text, width * (compact ? 0.38 : 0.42), line - 3 * unit, kind);
      if (lock) this.places.locks.push({ lock, box: null });
    }
    accounts.forEach((account, at) => {
      const x = 8 * unit + (at % columns) * wide;
      const y = top + 7 * unit + Math.floor(at / columns) * pitch;
      const cellBox = make("rect", { class: "account", x: x + 2, y, width: wide - 4, height: high, rx: 5 });
      front.append(cellBox);
      this.#label(front, "small", compact ? account.number : `no. ${account.number}`, x + 8 * unit, y + (compact ? 18 : 16) * unit);
      const balance = this.#label(front, "money", "", x + (compact ? 20 : 8) * unit, y + (compact ? 18 : 35) * unit);
      const lock = cell.place === "row" ? drawLock(x + wide - 13 * unit, y + 13 * unit, (compact ? 11 : 13) * unit) : null;
      if (lock) front.append(lock);
      this.places.accounts.set(account.number, { x: x + wide / 2, y, cellBox, balance, lock, account });
    });
    this.postgres = top;
    return top + height + 2;
  }

  still() {
    if (!this.film) return;
    const { at, incident } = this.film.telling;
    this.draw(at, 0, incident);
  }

  // Draw a moment, with what was written over at most `hold` before it, in the film's time.
  draw(at, hold, incident = this.film && this.film.incidentAt(at, hold)) {
    const { film, places } = this;
    if (!film) return;
    const wires = [];
    const dots = [];
    const waiting = [];
    const held = new Set();
    const holders = new Set();
    for (const [key, place] of places.threads) {
      const state = film.stateOf(key, at);
      set(place.circle, "class", `thread ${state.name}`);
      set(place.pause, "class", state.name === "waits" ? "pause" : "pause off");
      if (state.travelled !== undefined) dots.push([place.x, place.top - this.drop + state.travelled * (place.y - place.top + this.drop)]);
      if (!state.move) continue;
      if (state.name === "waits") {
        waiting.push({ place, move: state.move });
        continue;
      }
      holders.add(Number(key.split("/")[0]));
      for (const leg of state.move.legs) {
        const account = places.accounts.get(leg.account);
        if (at >= leg.read) held.add(leg.account);
        if (account && at >= leg.read) wires.push([at < leg.written ? "read" : "written", place, account]);
      }
    }
    this.#addWaiting(wires, waiting, held);
    if (incident) this.#addIncident(wires, incident);
    for (const [name, place] of places.accounts) {
      const hit = incident && incident.leg.account === name;
      set(place.cellBox, "class", hit ? "account hit" : "account");
      const after = hit && incident.its.before + incident.its.delta; // the one that stays
      write(place.balance, hit ? number(after) : film.accounts.has(name) ? number(film.balance(place.account, at)) : "");
      if (place.lock) set(place.lock, "class", held.has(name) ? "lock held" : "lock free");
    }
    for (const { lock, box } of places.locks) {
      set(lock, "class", box === null ? (holders.size ? "lock held" : "lock free") : holders.has(box) ? "lock held" : "lock free");
    }
    this.#drawWires(wires);
    this.#drawDots(dots);
    this.#drawCallout(incident);
  }

  // Rows are locked in the order of their numbers. So one that waits has its first row if nobody else has it, and waits
  // for the second; the journal does not say it, and in this order it cannot have been otherwise for long.
  #addWaiting(wires, waiting, held) {
    for (const { place, move } of waiting.sort((one, other) => one.move.claimed - other.move.claimed)) {
      const [first, second] = move.legs.map((leg) => leg.account).sort((one, other) => one - other);
      const wanted = held.has(first) ? first : second;
      if (wanted === second) held.add(first);
      const account = this.places.accounts.get(wanted);
      if (account) wires.push(["waits", place, account]);
    }
  }

  #addIncident(wires, { lost, culprit, leg }) {
    const account = this.places.accounts.get(leg.account);
    const [from, by] = [lost, culprit].map((move) => this.places.threads.get(`${move.box}/${move.thread}`));
    for (const [kind, thread] of [["lost", from], ["culprit", by]]) {
      const there = wires.findIndex(([, its, to]) => its === thread && to === account);
      if (there >= 0) wires.splice(there, 1); // its other wire lies under this one
      if (account && thread) wires.push([kind, thread, account]);
    }
  }

  #drawWires(wires) {
    while (this.wires.length < wires.length) {
      const line = make("line");
      this.layers.wires.append(line);
      this.wires.push(line);
    }
    this.wires.forEach((line, at) => {
      if (at >= wires.length) return set(line, "class", "off");
      const [kind, from, to] = wires[at];
      set(line, "class", `wire ${kind}`);
      set(line, "x1", from.x.toFixed(0));
      set(line, "y1", (from.y + 8 * this.unit).toFixed(0));
      set(line, "x2", to.x.toFixed(0));
      set(line, "y2", to.y.toFixed(0));
    });
  }

  #drawDots(dots) {
    while (this.dots.length < dots.length) {
      const dot = make("circle", { class: "transfer", r: 4 * this.unit });
      this.layers.dots.append(dot);
      this.dots.push(dot);
    }
    this.dots.forEach((dot, at) => {
      if (at >= dots.length) return set(dot, "class", "off");
      set(dot, "class", "transfer");
      set(dot, "cx", dots[at][0].toFixed(1));
      set(dot, "cy", dots[at][1].toFixed(1));
    });
  }

  // Say beside the account what was written over.
  #drawCallout(incident) {
    const key = incident ? `${incident.lost.number}/${incident.leg.account}` : "";
    if (key === this.told) return;
    this.told = key;
    const { told } = this.layers;
    const place = incident && this.places.accounts.get(incident.leg.account);
    if (!place) return told.replaceChildren();
    const { unit, width, film } = this;
    const name = (move) => film.boxes[move.box] || `w${move.box + 1}`;
    const same = incident.culprit.box === incident.lost.box;
    const lines = this.compact ? [
      same ? "one thread wrote over another" : `${name(incident.culprit)} wrote over ${name(incident.lost)}`,
      `${signed(incident.leg.delta)} is gone`,
    ] : [
      `${same ? "a thread" : name(incident.lost)} wrote ${number(incident.leg.before + incident.leg.delta)}`,
      `${same ? "another" : name(incident.culprit)} wrote ${number(incident.its.before + incident.its.delta)} over it`,
      `${signed(incident.leg.delta)} is gone`,
    ];
    const wide = Math.max(...lines.map((line) => line.length)) * 7 * unit + 20 * unit;
    const x = Math.min(Math.max(place.x, wide / 2 + 2), width - wide / 2 - 2);
    const high = (lines.length * 17 + 7) * unit;
    const y = this.postgres - high - (this.compact ? 7 : 13) * unit;
    const box = make("rect", { class: "callout", x: x - wide / 2, y, width: wide, height: high, rx: 6 });
    const texts = lines.map((line, at) => make("text", { class: at === lines.length - 1 ? "strong broken-text" : "small", x, y: y + (17 + at * 17) * unit, "text-anchor": "middle" }, line));
    told.replaceChildren(box, ...texts);
  }
}
