// Plays films in slow motion, one strategy after the other, and draws no more often than the machine can spare.

import { HOLD_MS } from "./film.js";

const PLAY_MS = 8000;
const STILL_MS = 3500;
const FRAME_MS = 40;
// While transfers run, the load and this picture share the machine: then it moves in steps.
const STEP_MS = navigator.hardwareConcurrency > 4 ? 50 : navigator.hardwareConcurrency > 2 ? 200 : 1000;

export class Player {
  constructor(stages) {
    this.stages = stages;
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.turn = 0;
  }

  get plays() {
    return this.turn > 0;
  }

  // Play what the stages show, once, in the same slow motion; then call `after`. `live`: in steps, beside a load.
  play(after, live = false) {
    this.stop();
    const films = this.stages().map((stage) => stage.film).filter(Boolean);
    const span = Math.max(1, ...films.map((film) => film.span));
    const begun = performance.now();
    const frame = this.still.matches ? STILL_MS : live ? STEP_MS : FRAME_MS;
    const length = this.still.matches ? STILL_MS : PLAY_MS;
    let last = 0;
    const mine = { stopped: false };
    this.mine = mine;
    this.turn += 1;
    const step = () => {
      if (mine.stopped) return;
      const now = performance.now();
      if (now - begun >= length) {
        this.stop();
        after();
        return;
      }
      if (!this.still.matches && now - last >= frame - 8) {
        last = now;
        const at = ((now - begun) / length) * span;
        for (const stage of this.stages()) stage.draw(at, (HOLD_MS / length) * span);
      }
      if (frame > FRAME_MS) setTimeout(step, Math.min(frame, length));
      else requestAnimationFrame(step);
    };
    step();
    return span / length;
  }

  stop() {
    if (this.mine) this.mine.stopped = true;
    this.mine = null;
    this.turn = 0;
  }
}
