import { h } from "./dom.js";
import { bytes, id, number, short, time } from "./format.js";
import { commandEnd, download, empty, facts, modelLink, more, pending, sessionLink, status, table } from "./parts.js";
import { Listing, Resource } from "./resources.js";
import { ordered } from "./state.js";

const COLUMNS = [
  { name: "Model" }, { name: "Session" }, { name: "Round", class: "number" }, { name: "Metrics" },
  { name: "Parameters", class: "number wide" }, { name: "Size", class: "number wide" }, { name: "Made", class: "wide" }, { name: "File" },
];
const METRICS_SHOWN = 3;
const CHAIN_STEP = 20;

/** Seeds, and the trail of what came of them; of one session with `?session=`. */
export class ModelsView {
  title = "Models";

  constructor(app) {
    this.app = app;
    this.session = null;
    this.models = new Listing(app, "models");
  }

  query(query) {
    this.session = query.get("session");
    this.models = new Listing(this.app, "models", { session: this.session });
    this.models.load();
  }

  take(_event, stale) {
    if (stale.has("models")) this.models.load();
  }

  render() {
    const items = this.models.value?.items;
    return h(
      "section",
      { class: "card" },
      h("h1", null, "Models"),
      this.session && h("p", null, "The trail of ", sessionLink(this.session), " · ", h("a", { href: "#/models" }, "all models")),
      !items && pending(this.models),
      items?.length === 0 && this.#none(),
      items?.length > 0 && table("Models", COLUMNS, items.map((model) => row(this.app, model))),
      more(this.models),
    );
  }

  #none() {
    if (this.session) return empty("This session has made no model yet.");
    return empty(
      "No model yet. A session pushes the model that it starts from:",
      `runnel session start --package PACKAGE --seed seed.npz --rounds 10${commandEnd(this.app.state)}`,
    );
  }
}

function row(app, model) {
  const metrics = metricsOf(model).slice(0, METRICS_SHOWN);
  return h(
    "tr",
    { key: model.model },
    h("th", { scope: "row" }, modelLink(model.model)),
    h("td", null, model.session ? sessionLink(model.session) : h("span", { class: "mute" }, "seed")),
    h("td", { class: "number" }, model.round ?? ""),
    h("td", null, metrics.map(([name, value]) => h("span", { key: name, class: "metric" }, h("span", { class: "mute" }, `${name} `), number(value)))),
    h("td", { class: "number wide" }, short(model.n_params)),
    h("td", { class: "number wide" }, bytes(model.size_bytes)),
    h("td", { class: "wide" }, time(model.created_at)),
    h("td", null, file(app, model)),
  );
}

function metricsOf(model) {
  return ordered(Object.keys(model.metrics)).map((name) => [name, model.metrics[name]]);
}

function file(app, model) {
  if (model.removed_at) return h("span", { class: "mute", title: "Its session keeps only its newest models." }, "removed");
  return download(app, `models/${encodeURIComponent(model.model)}/content`, `${model.model}.npz`);
}

/** One model: what it is, who gave to it, and what it came of. */
export class ModelView {
  constructor(app, model) {
    this.app = app;
    this.title = model;
    this.model = new Resource(app, `models/${encodeURIComponent(model)}`);
    this.chain = [];
    this.asking = false;
  }

  async start() {
    await this.model.load();
    if (this.model.value) this.#climb();
  }

  /** Read some more of the parents. */
  async #climb() {
    this.asking = true;
    await this.app.attempt(async () => {
      let at = this.chain.at(-1) ?? this.model.value;
      for (let step = 0; at.parent && step < CHAIN_STEP; step += 1) {
        at = await this.app.api.get(`models/${encodeURIComponent(at.parent)}`);
        this.chain.push(at);
      }
    });
    this.asking = false;
    this.app.redraw();
  }

  render() {
    const model = this.model.value;
    if (!model) return h("section", { class: "card" }, h("h1", null, this.title), pending(this.model));
    return [
      h(
        "section",
        { class: "card" },
        h("div", { class: "head" }, h("h1", { class: "code" }, model.model), file(this.app, model)),
        facts([
          ["session", model.session ? sessionLink(model.session) : "none: it is a seed"],
          ["round", model.round],
          ["parent", modelLink(model.parent)],
          ["parameters", `${short(model.n_params)} in ${short(model.tensors)} tensors`],
          ["size", `${bytes(model.size_bytes)}, ${model.format}`],
          ["file", model.removed_at && ["removed ", time(model.removed_at)]],
          ["SHA-256", h("code", { class: "break" }, model.digest)],
          ["package", model.package && id(model.package)],
          ["strategy", model.strategy],
          ["made", time(model.created_at)],
          ...metricsOf(model).map(([name, value]) => [name, number(value)]),
        ]),
      ),
      model.participants.length > 0 && h("section", { class: "card" }, h("h2", null, "Who gave to it"), participants(model)),
      h("section", { class: "card" }, h("h2", null, "What it came of"), this.#chain()),
    ];
  }

  #chain() {
    const model = this.model.value;
    if (!model.parent) return h("p", { class: "mute" }, "It has no parent: training starts from it.");
    const open = !this.asking && this.chain.length > 0 && this.chain.at(-1).parent;
    return [
      h(
        "ol",
        { class: "chain" },
        [model, ...this.chain].map((each) =>
          h(
            "li",
            { key: each.model },
            modelLink(each.model),
            h("span", { class: "mute" }, each.round === null ? " seed" : ` round ${each.round}`),
            metricsOf(each).slice(0, 1).map(([name, value]) => [` ${name} `, number(value)]),
          ),
        ),
      ),
      open && h("button", { type: "button", onclick: () => this.#climb() }, "Show older ones"),
    ];
  }
}

function participants(model) {
  const columns = [{ name: "Client" }, { name: "Part" }, { name: "Weight", class: "number" }];
  return table("Participants", columns, model.participants.map((each) =>
    h(
      "tr",
      { key: `${each.work} ${each.client}` },
      h("th", { scope: "row" }, each.client),
      h("td", null, status(each.status)),
      h("td", { class: "number" }, number(each.weight)),
    ),
  ));
}
