import { h } from "./dom.js";
import { id, time } from "./format.js";
import { more, pending, status, table } from "./parts.js";
import { Listing } from "./resources.js";

const ROLES = [
  ["client", "joins as a client"],
  ["combiner", "joins as a combiner"],
  ["viewer", "looks"],
  ["initiator", "packages, models, sessions, tasks"],
  ["researcher", "tasks"],
  ["operator", "everything"],
];
const DAY_S = 86_400;
const COLUMNS = [
  { name: "Token" }, { name: "Role" }, { name: "Name" }, { name: "State" }, { name: "Made", class: "wide" },
  { name: "Expires", class: "wide" }, { name: "" },
];

/** Who may join and ask: for operators. */
export class TokensView {
  title = "Tokens";

  constructor(app) {
    this.app = app;
    this.tokens = new Listing(app, "tokens");
    this.made = null; // the token whose secret is shown, this once
    this.create = (event) => this.#create(event);
  }

  start() {
    this.tokens.load();
  }

  take(_event, stale) {
    if (stale.has("tokens")) this.tokens.load();
  }

  async #create(event) {
    event.preventDefault();
    const form = event.target;
    const wanted = new FormData(form);
    const days = wanted.get("days");
    await this.app.attempt(async () => {
      this.made = await this.app.api.post("tokens", {
        role: wanted.get("role"),
        name: wanted.get("name").trim(),
        ttl_s: days === "" ? null : Number(days) * DAY_S,
      });
      form.reset();
      await this.tokens.load();
    });
  }

  async #revoke(token) {
    const sure = await this.app.confirm({
      title: `Revoke ${token.name || token.id}?`,
      text: `Whoever uses this ${token.role} token is refused from now on. This can’t be undone.`,
      yes: "Revoke",
    });
    if (!sure) return;
    await this.app.attempt(async () => {
      await this.app.api.del(`tokens/${encodeURIComponent(token.id)}`);
      await this.tokens.load();
    });
  }

  render() {
    const items = this.tokens.value?.items;
    return [
      h("section", { class: "card" }, h("h1", null, "Tokens"), this.#form(), this.made && this.#secret()),
      h(
        "section",
        { class: "card", "aria-labelledby": "tokens" },
        h("h2", { id: "tokens" }, "All tokens"),
        !items && pending(this.tokens),
        items?.length === 0 && h("p", { class: "mute" }, "No token yet."),
        items?.length > 0 && table("Tokens", COLUMNS, items.map((token) => this.#row(token))),
        more(this.tokens),
      ),
    ];
  }

  #form() {
    return h(
      "form",
      { class: "line", onsubmit: this.create, autocomplete: "off" },
      h("label", null, "Role", h("select", { name: "role", "aria-label": "Role" }, ROLES.map(([role, may]) => h("option", { key: role, value: role }, `${role} (${may})`)))),
      h("label", null, "Name", h("input", { name: "name", maxlength: 200, placeholder: "for whom or what" })),
      h("label", null, "Days until it expires", h("input", { name: "days", type: "number", min: 1, max: 3650, placeholder: "never" })),
      h("button", { type: "submit", class: "primary" }, "Create a token"),
    );
  }

  #secret() {
    const hide = () => {
      this.made = null;
      this.app.redraw();
    };
    return h(
      "div",
      { class: "secret", role: "status" },
      h("p", null, h("strong", null, `The ${this.made.role} token${this.made.name ? ` for ${this.made.name}` : ""}. `), "It is shown this once: hand it on now."),
      h("code", { class: "break", tabindex: "0" }, this.made.token),
      h("button", { type: "button", onclick: hide }, "Done"),
    );
  }

  #row(token) {
    const state = stateOf(token);
    const revoke = () => this.#revoke(token);
    return h(
      "tr",
      { key: token.id, class: state === "valid" ? null : "faint" },
      h("th", { scope: "row" }, id(token.id, 20)),
      h("td", null, token.role),
      h("td", null, token.name),
      h("td", null, status(state)),
      h("td", { class: "wide" }, time(token.created_at)),
      h("td", { class: "wide" }, time(token.expires_at) || "never"),
      h("td", null, state === "valid" && h("button", { type: "button", onclick: revoke, "aria-label": `Revoke ${token.name || token.id}` }, "Revoke")),
    );
  }
}

function stateOf(token) {
  if (token.revoked_at) return "revoked";
  return token.expires_at && new Date(token.expires_at) < new Date() ? "expired" : "valid";
}
