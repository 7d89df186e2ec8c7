// What a film says about one moment: which thread does what, which account holds how much, what was written over.
// A move is [box, thread, claimed, committed, legs], a leg [account, read, written, before, delta, over], times in ms.

export const HOLD_MS = 1100; // so long a posting that was written over is shown, in the viewer's time
const TRAVEL = 0.05; // of the film: how long a transfer is on its way from the broker
const GUARDED = new Set(["process", "host", "redis"]); // there a thread waits before its transaction begins
const LOCKING = new Set(["row", "database"]); // there it waits in it, before it has read

export class Film {
  constructor(plain, place) {
    this.span = Math.max(plain.span_ms, 1);
    this.boxes = plain.boxes;
    this.guarded = GUARDED.has(place);
    this.locking = LOCKING.has(place);
    this.moves = plain.moves.map(([box, thread, claimed, committed, legs], number) => ({
      number, box, thread, claimed, committed,
      legs: legs.map(([account, read, written, before, delta, over]) => ({ account, read, written, before, delta, over })),
    }));
    this.threads = new Map();
    for (const move of this.moves) {
      const key = `${move.box}/${move.thread}`;
      if (!this.threads.has(key)) this.threads.set(key, []);
      this.threads.get(key).push(move);
    }
    this.accounts = this.#findAccounts();
    this.incidents = this.#findIncidents();
  }

  // The accounts that occur, the busiest first, with what each holds after every commit.
  #findAccounts() {
    const found = new Map();
    for (const move of this.moves) {
      for (const leg of move.legs) {
        if (!found.has(leg.account)) found.set(leg.account, { number: leg.account, first: leg.before, held: [] });
        found.get(leg.account).held.push({ at: move.committed, value: leg.before + leg.delta });
      }
    }
    for (const account of found.values()) account.held.sort((a, b) => a.at - b.at);
    return found;
  }

  // Postings that were written over, with the move that did it, in the order in which it happened.
  #findIncidents() {
    const found = [];
    for (const move of this.moves) {
      for (const leg of move.legs) {
        const culprit = leg.over === null ? undefined : this.moves[leg.over];
        const its = culprit && culprit.legs.find((other) => other.account === leg.account);
        if (its) found.push({ at: Math.max(its.written, leg.written), lost: move, leg, culprit, its });
      }
    }
    return found.sort((a, b) => a.at - b.at);
  }

  // The moment that tells most without movement, and what is written over there: both who will have written are at
  // work, across boxes if that occurs. Where nothing is written over, it is when most threads are seen to wait.
  get telling() {
    const overlap = ({ lost, its }) => lost.committed - its.read;
    const across = this.incidents.filter((one) => one.lost.box !== one.culprit.box);
    const [incident] = (across.length ? across : [...this.incidents]).sort((one, other) => overlap(other) - overlap(one));
    if (incident) return { incident, at: Math.max(incident.its.read, Math.min(incident.lost.committed, incident.culprit.committed) - 0.01) };
    let best = { count: -1, at: 0 };
    for (const move of this.moves.slice(0, 40)) {
      const at = (move.legs[0].read + move.committed) / 2;
      const count = [...this.threads.keys()].filter((key) => this.stateOf(key, at).name === "waits").length;
      if (count > best.count) best = { count, at };
    }
    return { at: best.at };
  }

  // What a thread does at a moment: idle, waits or works, with its move, and how far one is on its way to it.
  stateOf(key, at) {
    const moves = this.threads.get(key) || [];
    let next = 0;
    while (next < moves.length && moves[next].committed < at) next += 1;
    const move = moves[next];
    if (!move) return { name: "idle" };
    if (at >= move.claimed) {
      const read = Math.min(...move.legs.map((leg) => leg.read));
      const waits = this.locking && at < read && read - move.claimed > this.span / 60;
      return { name: waits ? "waits" : "works", move };
    }
    const before = next ? moves[next - 1].committed : Math.min(0, move.claimed - this.span);
    const travel = Math.min(this.span * TRAVEL, move.claimed - before);
    if (this.guarded) {
      if (at < before + travel) return { name: "idle", travelled: (at - before) / travel };
      return { name: "waits", move: null };
    }
    const begins = move.claimed - travel;
    return at < begins ? { name: "idle" } : { name: "idle", travelled: (at - begins) / travel };
  }

  balance(account, at) {
    let value = account.first;
    for (const one of account.held) {
      if (one.at > at) break;
      value = one.value;
    }
    return value;
  }

  // The incident that is shown at a moment, if any: the last one, for a while.
  incidentAt(at, hold) {
    let shown;
    for (const one of this.incidents) {
      if (one.at > at) break;
      if (at - one.at <= hold && (!shown || at - shown.at > hold / 2 || shown.lost.box === shown.culprit.box)) shown = one;
    }
    return shown;
  }
}
