// A listing of lines that grows while it is read: by pages, from the oldest on, with a limit to what is kept.

import { h } from "./dom.js";
import { table } from "./parts.js";

const PAGE = 500;
const PAGES_AT_ONCE = 4;
const KEPT = 2000;
const PAUSE_MS = 1000;

/** Lines at a path; who extends it says by `query()` which of them, and by `row(line)` how one is shown. */
export class Lines {
  constructor(app, path, columns) {
    Object.assign(this, { app, path, columns });
    this.timer = null;
    this.reading = false;
    this.dirty = false;
    this.stopped = false;
    this.atEnd = true; // who reads at the end sees what comes; who has scrolled back is left in peace
    this.box = null;
    this.scrolling = {
      ref: (box) => {
        this.box = box;
      },
      onscroll: ({ target }) => {
        this.atEnd = target.scrollHeight - target.scrollTop - target.clientHeight < 30;
      },
    };
    this.forget();
  }

  query() {
    return {};
  }

  forget() {
    this.rows = []; // {id, row}
    this.cursor = null;
    this.unread = false;
    this.dropped = false;
    this.problem = null;
    this.generation = {};
  }

  stop() {
    this.stopped = true;
    clearTimeout(this.timer);
  }

  drawn() {
    if (this.atEnd && this.box?.isConnected) this.box.scrollTop = this.box.scrollHeight;
  }

  /** There may be more; it is read at most once a second. */
  poke() {
    if (this.stopped || this.timer !== null) {
      this.dirty = true;
      return;
    }
    this.timer = setTimeout(() => {
      this.timer = null;
      if (this.dirty) this.poke();
    }, PAUSE_MS);
    this.dirty = false;
    this.read();
  }

  async read() {
    if (this.reading || this.stopped) {
      this.dirty = true;
      return;
    }
    this.reading = true;
    const { generation } = this;
    try {
      let next = null;
      for (let pages = 0; pages < PAGES_AT_ONCE; pages += 1) {
        const page = await this.app.api.get(this.path, { limit: PAGE, cursor: this.cursor, ...this.query() });
        if (generation !== this.generation) return;
        this.#add(page.items);
        next = page.next;
        // The last page is not full yet: it is read again when there may be more.
        if (!next) break;
        this.cursor = next;
      }
      this.unread = next !== null;
      this.problem = null;
    } catch (problem) {
      // That the reducer is away is told elsewhere, and what was read is still true.
      if (generation === this.generation && problem.status !== 0) this.problem = problem;
    } finally {
      if (generation === this.generation) this.reading = false;
      this.app.redraw();
    }
  }

  #add(lines) {
    const last = this.rows.at(-1)?.id ?? 0;
    for (const line of lines) if (line.id > last) this.rows.push({ id: line.id, row: this.row(line) });
    if (this.rows.length > KEPT) {
      this.rows = this.rows.slice(-KEPT);
      this.dropped = true;
    }
  }

  /** The lines; `nothing` is what stands there while there is none. */
  body(nothing) {
    return [
      this.problem && h("p", { class: "failure-text", role: "alert" }, this.problem.message),
      this.dropped && h("p", { class: "mute" }, `Only the last ${KEPT} lines that were read are shown.`),
      this.rows.length
        ? h("div", { class: "log" }, table("Log lines", this.columns, this.rows.map((each) => each.row), this.scrolling))
        : h("p", { class: "mute" }, this.reading ? "Asking …" : nothing),
      this.unread && h("button", { type: "button", onclick: () => this.read() }, "Read on"),
    ];
  }
}

/** How a line of this stream is drawn. */
export function lineClass(stream) {
  return stream === "stderr" ? "stderr" : stream === "runnel" ? "own" : null;
}
