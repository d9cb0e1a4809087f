// What the entry points wrote, as far as it is read: by client and round, growing while the session runs.

import { h } from "./dom.js";
import { time } from "./format.js";
import { table } from "./parts.js";

const PAGE = 500;
const PAGES_AT_ONCE = 4;
const KEPT = 2000;
const PAUSE_MS = 1000;
const COLUMNS = [{ name: "Time", class: "wide" }, { name: "Client" }, { name: "Round" }, { name: "Line" }];

export class LogLines {
  constructor(app, session) {
    Object.assign(this, { app, session });
    this.client = "";
    this.round = "newest"; // or "all", or a number as text
    this.newest = null;
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
    this.#forget();
  }

  #forget() {
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

  /** Take the number of the newest round. */
  follow(newest) {
    if (newest === this.newest) return;
    this.newest = newest;
    if (this.round === "newest") this.choose({});
  }

  choose(changes) {
    Object.assign(this, changes);
    this.#forget();
    this.reading = false;
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
        const page = await this.app.api.get(`sessions/${encodeURIComponent(this.session)}/logs`, {
          limit: PAGE,
          cursor: this.cursor,
          client: this.client || null,
          round: this.round === "newest" ? this.newest : this.round === "all" ? null : this.round,
        });
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
    for (const line of lines) if (line.id > last) this.rows.push({ id: line.id, row: row(line) });
    if (this.rows.length > KEPT) {
      this.rows = this.rows.slice(-KEPT);
      this.dropped = true;
    }
  }

  /** The section, with its filters; `clients` are the names to choose from. */
  render(clients, rounds) {
    const client = (event) => this.choose({ client: event.target.value });
    const round = (event) => this.choose({ round: event.target.value });
    const known = this.client && !clients.includes(this.client) ? [this.client, ...clients] : clients;
    const newest = this.newest === null ? "newest round" : `newest round (${this.newest})`;
    return h(
      "section",
      { class: "card", "aria-labelledby": "log", key: "log" },
      h(
        "div",
        { class: "head" },
        h("h2", { id: "log" }, "Log"),
        h(
          "div",
          { class: "line" },
          h("label", null, "Client", h("select", { value: this.client, onchange: client, "aria-label": "Client" },
            h("option", { value: "", key: "" }, "all"), known.map((name) => h("option", { key: `c ${name}`, value: name }, name)))),
          h("label", null, "Round", h("select", { value: this.round, onchange: round, "aria-label": "Round" },
            h("option", { key: "newest", value: "newest" }, newest), h("option", { key: "all", value: "all" }, "all"),
            rounds.map((number) => h("option", { key: number, value: String(number) }, number)))),
        ),
      ),
      this.problem && h("p", { class: "failure-text", role: "alert" }, this.problem.message),
      this.dropped && h("p", { class: "mute" }, `Only the last ${KEPT} lines that were read are shown.`),
      this.rows.length
        ? h("div", { class: "log" }, table("Log lines", COLUMNS, this.rows.map((each) => each.row), this.scrolling))
        : h("p", { class: "mute" }, this.reading ? "Asking …" : "Nobody has written a line here."),
      this.unread && h("button", { type: "button", onclick: () => this.read() }, "Read on"),
    );
  }
}

function row(line) {
  return h(
    "tr",
    { key: line.id, class: line.stream === "stderr" ? "stderr" : line.stream === "runnel" ? "own" : null },
    h("td", { class: "wide" }, time(line.at)),
    h("td", null, line.client),
    h("td", null, `${line.round} ${line.work}`),
    h("td", { class: "text" }, line.text),
  );
}
