// A card for each cell, with its verdict as it comes. Strategies stand together, in the order of the plan.
import { number, sign, signed } from "./stage.js";

const key = (cell) => `${cell.strategy} ${cell.topology}`;

export class Cards {
  constructor(parent, onOpen) {
    this.parent = parent;
    this.onOpen = onOpen;
    this.cards = new Map();
  }

  // Make the cards of these cells; a card that is there stays, with the focus that it may have.
  show(cells) {
    const strategies = [...new Set(cells.map((cell) => cell.strategy))];
    const topologies = new Set(cells.map((cell) => cell.topology));
    this.parent.className = `cards per${Math.min(topologies.size, 4)}${strategies.length > 6 ? " many" : ""}`;
    const wanted = strategies.flatMap((strategy) => cells.filter((cell) => cell.strategy === strategy));
    const kept = new Map(wanted.map((cell) => [key(cell), this.cards.get(key(cell)) || this.#make()]));
    const now = [...this.parent.children];
    const next = [...kept.values()].map((card) => card.button);
    if (now.length !== next.length || now.some((one, at) => one !== next[at])) this.parent.replaceChildren(...next);
    this.cards = kept;
    for (const cell of wanted) this.tell(cell, null);
  }

  #make() {
    const button = document.createElement("button");
    button.type = "button";
    const parts = {};
    for (const name of ["strategy", "topology", "verdict", "lost", "rest"]) {
      parts[name] = document.createElement("span");
      parts[name].className = name;
      button.append(parts[name], " ");
    }
    const card = { button, parts };
    button.addEventListener("click", () => this.onOpen(card.cell));
    return card;
  }

  // Write a cell's card. `now` is what is seen of it, if it is the one that runs.
  tell(cell, now) {
    const card = this.cards.get(key(cell));
    if (!card) return;
    card.cell = cell;
    const { button, parts } = card;
    const live = now && now.live;
    parts.strategy.textContent = cell.strategy;
    parts.topology.textContent = cell.topology;
    button.disabled = !cell.verdict;
    if (cell.verdict) {
      button.className = `card ${cell.verdict}`;
      parts.verdict.textContent = `${sign(cell.verdict)} ${cell.verdict}`;
      parts.lost.textContent = cell.lost ? `${number(cell.lost)} lost` : "nothing lost";
      parts.rest.textContent = `of ${number(cell.postings)} postings · drift ${signed(cell.drift) || "0"} · ${number(Math.round(cell.rate))}/s`;
      return;
    }
    button.className = now ? "card runs" : "card waits";
    parts.verdict.textContent = now ? "runs" : "to come";
    parts.lost.textContent = live ? `${number(live.overwritten)} written over` : now ? "begins" : "—";
    parts.rest.textContent = now
      ? `${number(now.done)} of ${number(now.transfers)}${live ? ` · drift ${signed(live.drift) || "0"} · ${number(Math.round(live.rate))}/s` : ""}`
      : "";
    button.style.setProperty("--done", now && now.transfers ? now.done / now.transfers : 0);
  }
}
