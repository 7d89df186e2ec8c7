// Draws three moments of the recording with the page's own script; tools/pictures.py runs it in a browser.
async ([strategy, topology]) => {
  const { Stage, number, signed } = await import("/stage.js");
  const recording = await (await fetch("/recording.json")).json();
  const isIt = (one) => one.strategy === strategy && one.topology === topology;
  const cell = recording.cells.find(isIt);
  const stage = new Stage(document.getElementById("stages"));
  stage.show(cell, recording.films.find(isIt), null);
  const { incident } = stage.film.telling;
  const { lost, culprit, leg, its } = incident;
  const name = (move) => stage.film.boxes[move.box];
  // What it is about is marked in every frame: the account, and both threads.
  const mark = (element) => element.setAttribute("class", `${element.getAttribute("class")} watched`);
  const frame = (at, shown, lines) => {
    stage.draw(at, 0, shown);
    mark(stage.places.accounts.get(leg.account).cellBox);
    for (const move of [lost, culprit]) mark(stage.places.threads.get(`${move.box}/${move.thread}`).circle);
    return { svg: new XMLSerializer().serializeToString(stage.drawing.firstElementChild), lines };
  };
  const both = Math.max(leg.read, its.read);
  return {
    recorded: recording.recorded,
    cell: `${number(cell.lost)} of ${number(cell.postings)} postings`,
    frames: [
      frame(both + 0.001, undefined, [
        "Each worker has a lock of its own.",
        `${name(lost)} and ${name(culprit)} both read ${number(leg.before)} in account ${leg.account}.`,
      ]),
      frame((Math.max(leg.written, both) + its.written) / 2, undefined, [
        `${name(lost)} writes ${number(leg.before + leg.delta)} (${signed(leg.delta)}),`,
        "and gives its lock back.",
      ]),
      frame(Math.max(lost.committed, culprit.committed) + 0.001, incident, [
        `${name(culprit)} writes ${number(its.before + its.delta)} (${signed(its.delta)}) over it.`,
        `The ${signed(leg.delta)} of ${name(lost)} is gone.`,
      ]),
    ],
  };
}
