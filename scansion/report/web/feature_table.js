// The table of features: all of them, though only the rows in view exist; sorted, searched and walked by keyboard.

const ROW_HEIGHT = 34;
const BEYOND = 6; // rows made beyond either edge of the view

class FeatureTable {
  /** @param root the grid; @param open called with a feature and whether the keyboard asked for it. */
  constructor(root, open) {
    this.open = open;
    this.root = root;
    this.head = root.querySelector(".head");
    this.body = root.querySelector(".body");
    this.spacer = make("div", { class: "spacer", role: "presentation" });
    this.empty = make("p", { class: "muted empty", hidden: true }, "No feature matches.");
    this.body.append(this.spacer, this.empty);
    this.rows = new Map();
    this.order = new Uint32Array();
    this.active = 0;
    this.chosen = null;
    this.byDefault = false; // whether the open feature is the first of the table, which nobody chose
    this.sorting = { key: "specialisation", direction: "descending" };
    this.query = "";
    this.filter = FILTERS[0];
    this.hits = null;
    for (const column of COLUMNS) this.head.append(this.heading(column));
    this.body.addEventListener("scroll", () => this.render(), { passive: true });
    this.body.addEventListener("keydown", (event) => this.onKey(event));
    new ResizeObserver(() => this.render()).observe(this.body);
  }

  heading(column) {
    const name = column.unit ? `${column.title}, ${column.unit}` : column.title;
    const inside = column.value
      ? make("button", { type: "button", title: column.hint, onclick: () => this.sortBy(column.key) }, name)
      : make("span", { title: column.hint }, name);
    return make("div", { role: "columnheader", class: `cell ${column.key}`, "data-key": column.key }, inside);
  }

  /** Show another SAE's features. */
  show(features) {
    this.features = features;
    this.chosen = null;
    this.refresh();
  }

  /** Sort by a column; asked again, the other way round. */
  sortBy(key, direction = null) {
    const column = COLUMNS.find((one) => one.key === key);
    const turned = this.sorting.direction === "ascending" ? "descending" : "ascending";
    this.sorting = { key, direction: direction ?? (this.sorting.key === key ? turned : column.first) };
    this.refresh();
  }

  /** Show what matches a query; or, with `hits` (1 or 0 for each feature), these features. */
  search(query, hits = null) {
    this.query = query;
    this.hits = hits;
    this.refresh();
  }

  filterBy(key) {
    this.filter = FILTERS.find((one) => one.key === key);
    this.refresh();
  }

  /** Find what is shown, in order, and show it from the top. */
  refresh() {
    const column = COLUMNS.find((one) => one.key === this.sorting.key);
    const { table } = this.features;
    const found = this.hits ? matching(this.features, "").filter((f) => this.hits[f]) : matching(this.features, this.query);
    this.order = sorted(found.filter((f) => this.filter.test(table, f)), table, column, this.sorting.direction);
    for (const cell of this.head.children) {
      const direction = cell.dataset.key === this.sorting.key ? this.sorting.direction : null;
      if (direction) cell.setAttribute("aria-sort", direction);
      else cell.removeAttribute("aria-sort");
    }
    this.root.setAttribute("aria-rowcount", this.order.length + 1);
    this.spacer.style.height = `${this.order.length * ROW_HEIGHT}px`;
    this.empty.hidden = this.order.length > 0;
    this.active = Math.max(0, this.chosen === null || this.byDefault ? 0 : this.order.indexOf(this.chosen));
    this.redraw();
    this.body.scrollTop = Math.max(0, (this.active - 2) * ROW_HEIGHT);
    this.render();
  }

  /** Redraw every row in the current colours. */
  redraw() {
    for (const element of this.rows.values()) element.remove();
    this.rows.clear();
    this.render();
  }

  /** Make the rows in view and forget the others, but for the one that has or would get the focus. */
  render() {
    if (!this.features) return;
    const first = Math.max(0, Math.floor(this.body.scrollTop / ROW_HEIGHT) - BEYOND);
    const last = Math.min(this.order.length, Math.ceil((this.body.scrollTop + this.body.clientHeight) / ROW_HEIGHT) + BEYOND);
    for (const [place, element] of this.rows) {
      if ((place < first || place >= last) && place !== this.active) {
        element.remove();
        this.rows.delete(place);
      }
    }
    for (let place = first; place < last; place++) this.rowAt(place);
    if (this.active < this.order.length) this.rowAt(this.active);
    for (const [place, element] of this.rows) element.tabIndex = place === this.active ? 0 : -1;
  }

  rowAt(place) {
    if (this.rows.has(place)) return this.rows.get(place);
    const f = this.order[place];
    const element = make("div", {
      role: "row", class: "row", "aria-rowindex": place + 2, "aria-selected": String(f === this.chosen), "data-feature": f,
      onclick: () => this.choose(place, false), onfocus: () => this.activate(place),
    });
    element.style.transform = `translateY(${place * ROW_HEIGHT}px)`;
    for (const column of COLUMNS) {
      element.append(make("div", { role: "gridcell", class: `cell ${column.key}` }, column.cell(this.features, f)));
    }
    this.spacer.append(element);
    this.rows.set(place, element);
    return element;
  }

  activate(place) {
    if (place === this.active) return;
    this.active = place;
    this.render();
  }

  /** Move the focus to a row, in view. */
  focus(place = this.active) {
    if (!this.order.length) return;
    this.active = Math.min(Math.max(place, 0), this.order.length - 1);
    const top = this.active * ROW_HEIGHT;
    const height = this.body.clientHeight;
    if (top < this.body.scrollTop) this.body.scrollTop = top;
    else if (top + ROW_HEIGHT > this.body.scrollTop + height) this.body.scrollTop = top + ROW_HEIGHT - height;
    this.render();
    this.rows.get(this.active).focus({ preventScroll: true });
  }

  choose(place, byKeyboard) {
    this.active = place;
    this.mark(this.order[place]);
    this.render();
    this.open(this.order[place], byKeyboard);
  }

  /** Mark a feature as the one that is open; null for none. */
  mark(feature) {
    this.chosen = feature;
    const place = feature === null ? -1 : this.order.indexOf(feature);
    if (place >= 0) this.active = place;
    for (const element of this.rows.values()) {
      element.setAttribute("aria-selected", String(Number(element.dataset.feature) === feature));
    }
    this.render();
  }

  onKey(event) {
    const page = Math.max(1, Math.floor(this.body.clientHeight / ROW_HEIGHT) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key in steps) this.focus(this.active + steps[event.key]);
    else if (event.key === "Enter" || event.key === " ") this.choose(this.active, true);
    else return;
    event.preventDefault();
  }
}
