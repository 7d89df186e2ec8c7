// The plan: what is typed stands in the address, so that it survives a reload and can be sent as a link.

const HEADLINE = new Set(["none", "thread-lock", "row-lock"]);

export class PlanForm {
  constructor(form, onSubmit) {
    this.form = form;
    form.addEventListener("input", () => this.#keep());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#keep();
      onSubmit(this.query());
    });
    document.getElementById("all").addEventListener("click", () => this.#choose(() => true));
    document.getElementById("headline").addEventListener("click", () => this.#choose((name) => HEADLINE.has(name)));
  }

  query() {
    const values = new FormData(this.form);
    const query = new URLSearchParams({ strategies: values.getAll("strategies").join(",") });
    for (const [name, value] of values) if (name !== "strategies" && value !== "") query.set(name, value);
    return query.toString().replaceAll("%2C", ",");
  }

  #keep() {
    history.replaceState(null, "", `?${this.query()}`);
  }

  #choose(wanted) {
    for (const box of this.form.querySelectorAll("[name=strategies]")) box.checked = wanted(box.value);
    this.#keep();
  }
}
