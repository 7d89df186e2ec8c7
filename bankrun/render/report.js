(async () => {
  // Without this script everything is a table or an SVG. With it, what can be explored is drawn above its table.
  const plots = document.querySelectorAll("script[data-plot]");
  if (!plots.length || !("DecompressionStream" in window)) return;
  const packed = Uint8Array.from(atob(document.getElementById("library").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const library = document.createElement("script");
  library.textContent = await new Response(stream).text();
  document.head.append(library);

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const dress = (paper) => {
    const light = paper || !dark.matches;
    return { "font.color": light ? "#1c2330" : "#e4e8ee", "hoverlabel.bgcolor": light ? "#ffffff" : "#232a35" };
  };
  const boxes = [];
  for (const plot of plots) {
    const box = document.getElementById(plot.dataset.plot);
    const { data, layout } = JSON.parse(plot.textContent);
    box.hidden = false;
    await Plotly.newPlot(box, data, layout, {
      responsive: true, displayModeBar: false,
    });
    await Plotly.relayout(box, dress(false));
    const details = box.parentElement.querySelector("details");
    if (details) details.open = false;
    boxes.push(box);
  }
  const redress = (paper) => boxes.forEach((box) => Plotly.relayout(box, dress(paper)));
  dark.addEventListener("change", () => redress(false));
  addEventListener("beforeprint", () => {
    redress(true);
    document.querySelectorAll("details").forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => redress(false));
})();
