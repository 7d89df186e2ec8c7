// The size of the type: for a desk, a meeting or a projector. The browser remembers it.

function setSize(size) {
  document.documentElement.dataset.size = size;
  for (const button of document.querySelectorAll(".sizes button")) {
    button.setAttribute("aria-pressed", String(button.dataset.size === size));
  }
}

// Let the buttons choose, and call `redraw` when one was chosen.
export function offerSizes(redraw) {
  for (const button of document.querySelectorAll(".sizes button")) {
    button.addEventListener("click", () => {
      setSize(button.dataset.size);
      try {
        localStorage.setItem("size", button.dataset.size);
      } catch { /* a browser may keep nothing */ }
      redraw();
    });
  }
  try {
    setSize(localStorage.getItem("size") || "normal");
  } catch {
    setSize("normal");
  }
}
