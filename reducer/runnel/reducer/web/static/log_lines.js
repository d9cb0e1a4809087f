// What the entry points wrote, as far as it is read: by client and round, growing while the session runs.

import { h } from "./dom.js";
import { time } from "./format.js";
import { lineClass, Lines } from "./lines.js";

const COLUMNS = [{ name: "Time", class: "wide" }, { name: "Client" }, { name: "Round" }, { name: "Line" }];

export class LogLines extends Lines {
  constructor(app, session) {
    super(app, `sessions/${encodeURIComponent(session)}/logs`, COLUMNS);
    this.client = "";
    this.round = "newest"; // or "all", or a number as text
    this.newest = null;
  }

  query() {
    const round = this.round === "newest" ? this.newest : this.round === "all" ? null : this.round;
    return { client: this.client || null, round };
  }

  row(line) {
    return h(
      "tr",
      { key: line.id, class: lineClass(line.stream) },
      h("td", { class: "wide" }, time(line.at)),
      h("td", null, line.client),
      h("td", null, `${line.round} ${line.work}`),
      h("td", { class: "text" }, line.text),
    );
  }

  /** Take the number of the newest round. */
  follow(newest) {
    if (newest === this.newest) return;
    this.newest = newest;
    if (this.round === "newest") this.choose({});
  }

  choose(changes) {
    Object.assign(this, changes);
    this.forget();
    this.reading = false;
    this.read();
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
      this.body("Nobody has written a line here."),
    );
  }
}
