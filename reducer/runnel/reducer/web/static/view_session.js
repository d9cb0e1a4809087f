import { curve } from "./chart.js";
import { h } from "./dom.js";
import { id, seconds, short, time } from "./format.js";
import { LogLines } from "./log_lines.js";
import { download, facts, modelLink, pending, status } from "./parts.js";
import { Resource } from "./resources.js";
import { clientsTable, roundsTable } from "./round_tables.js";
import { committed, lookOf, metricNames, STAGES } from "./state.js";

const ROUNDS_SHOWN = 25;
const ROUND_CHOICES = 500;
const MAKES_LOG = new Set(["progress", "session.phase", "round.committed", "client.failed", "client.awaiting", "session.ended"]);
const CHANGES_CLIENTS = new Set(["round.committed", "client.failed", "client.awaiting", "session.ended", "round.retried"]);

/** One session: how it goes, what came of each round, who gave what, what was written. */
export class SessionView {
  constructor(app, session) {
    this.app = app;
    this.id = session;
    this.path = `sessions/${encodeURIComponent(session)}`;
    this.entry = new Resource(app, this.path);
    this.entry.read = () =>
      app.loader.learn(() => app.api.get(this.path), (found) => app.state.know(found, { detailed: true }));
    this.detail = new Resource(app, this.path, { clients: true });
    this.log = new LogLines(app, session);
    this.round = null;
    this.all = false;
    this.pointed = new Map(); // name of a curve → round
    this.extend = (event) => this.#extend(event);
  }

  get session() {
    return this.app.state.sessions.get(this.id) ?? null;
  }

  get title() {
    return this.session?.name || this.id;
  }

  async start() {
    await this.entry.load();
    if (this.entry.value && this.entry.value.session !== this.id) {
      // It was named by the beginning of its id.
      window.location.replace(`#/sessions/${encodeURIComponent(this.entry.value.session)}`);
      return;
    }
    this.log.poke();
  }

  stop() {
    this.log.stop();
  }

  drawn() {
    this.log.drawn();
  }

  query(query) {
    const round = Number(query.get("round")) || null;
    if (round === this.round) return;
    this.round = round;
    if (round !== null) this.detail.load();
  }

  take(event, stale) {
    if (event === null) {
      if (!stale.has("sessions")) return;
      this.entry.load();
      if (this.round !== null) this.detail.load();
      this.log.poke();
    } else if (event.session === this.id) {
      if (MAKES_LOG.has(event.kind)) this.log.poke();
      if (this.round !== null && CHANGES_CLIENTS.has(event.kind)) this.detail.load();
    }
  }

  // ---- what people do

  async #steer(what, body) {
    await this.app.attempt(async () => {
      await this.app.loader.learn(
        () => this.app.api.post(`${this.path}/${what}`, body),
        (now) => this.app.state.know(now, { detailed: false }),
      );
      this.app.loader.session(this.id);
    });
  }

  async #stop() {
    const sure = await this.app.confirm({
      title: `Stop ${this.title}?`,
      text: "What is under way is called off. The newest model stays, and the session can be resumed.",
      yes: "Stop the session",
    });
    if (sure) await this.#steer("stop");
  }

  async #extend(event) {
    event.preventDefault();
    await this.#steer("extend", { rounds: Number(new FormData(event.target).get("rounds")) });
  }

  // ---- what they see

  render() {
    const { session } = this;
    if (!session || !this.app.state.detailed.has(this.id)) {
      return h("section", { class: "card" }, h("h1", null, this.id), pending(this.entry));
    }
    const progress = this.app.state.progress.get(this.id);
    this.log.follow(progress?.round || (session.rounds.at(-1)?.round ?? null)); // before the first round it is 0
    return [
      this.#head(session, progress),
      this.#curves(session),
      this.#rounds(session),
      this.#clients(session),
      this.log.render(clientNames(this.app.state), session.rounds.map((each) => each.round).reverse().slice(0, ROUND_CHOICES)),
      this.#config(session),
    ];
  }

  #head(session, progress) {
    const done = committed(session).length;
    const wanted = session.config.rounds;
    return h(
      "section",
      { class: "card", key: "head" },
      h(
        "div",
        { class: "head" },
        h("div", null, h("h1", null, this.title, " ", status(session.status)), h("code", { class: "mute" }, session.session)),
        this.app.state.maySteer && this.#buttons(session),
      ),
      session.reason && h("p", { class: session.status === "failed" ? "reason failed" : "reason" }, session.reason),
      h("progress", { class: "large", max: wanted, value: done, "aria-label": "Rounds" }),
      h("p", { class: "present" }, h("strong", null, `${done} of ${wanted} rounds`), session.status === "running" ? ` · ${present(session, progress)}` : ""),
      session.status === "running" && progress && byStage(progress),
    );
  }

  #buttons(session) {
    const running = session.status === "running";
    const again = session.status === "stopped" || session.status === "failed";
    return h(
      "div",
      { class: "buttons" },
      running && h("button", { key: "stop", type: "button", class: "danger", onclick: () => this.#stop() }, "Stop"),
      again && h("button", { key: "resume", type: "button", class: "primary", onclick: () => this.#steer("resume") }, "Resume"),
      h(
        "form",
        { key: "extend", class: "line", onsubmit: this.extend },
        h("input", { name: "rounds", type: "number", min: 1, max: 100000, required: true, placeholder: "rounds", "aria-label": "Rounds to add" }),
        h("button", { type: "submit" }, "Extend"),
      ),
    );
  }

  #curves(session) {
    const rounds = committed(session);
    const validated = metricNames(rounds, session);
    const trained = metricNames(rounds, session, "train_metrics");
    const names = [...new Set([...validated, ...trained])];
    const curves = names.map((name) => [name, series(rounds, name)]).filter(([, found]) => found.length);
    return h(
      "section",
      { class: "card", key: "curves", "aria-labelledby": "metrics" },
      h("div", { class: "head" }, h("h2", { id: "metrics" }, "Metrics"), h("ul", { class: "legend", "aria-hidden": "true" },
        h("li", null, h("span", { class: "swatch line-validate" }), "validation"), h("li", null, h("span", { class: "swatch line-train" }), "training"))),
      curves.length === 0 && h("p", { class: "mute" }, nothingMeasured(session, rounds)),
      h("div", { class: "curves" }, curves.map(([name, found]) => curve({ name, series: found, at: this.pointed.get(name) ?? null, point: (round) => this.#point(name, round) }))),
    );
  }

  #point(name, round) {
    if ((this.pointed.get(name) ?? null) === round) return;
    if (round === null) this.pointed.delete(name);
    else this.pointed.set(name, round);
    this.app.redraw();
  }

  #rounds(session) {
    const newest = [...session.rounds].reverse();
    const shown = this.all ? newest : newest.filter((each, index) => index < ROUNDS_SHOWN || each.round === this.round);
    const showAll = () => {
      this.all = true;
      this.app.redraw();
    };
    return h(
      "section",
      { class: "card", key: "rounds", "aria-labelledby": "rounds" },
      h("div", { class: "head" }, h("h2", { id: "rounds" }, "Rounds"), h("a", { href: `#/models?session=${encodeURIComponent(this.id)}` }, "Trail of models")),
      shown.length ? roundsTable(session, shown, this.round) : h("p", { class: "mute" }, "No round has begun."),
      shown.length < newest.length && h("button", { type: "button", onclick: showAll }, `Show all ${newest.length}`),
    );
  }

  #clients() {
    if (this.round === null) return null;
    const found = this.detail.value?.rounds.find((each) => each.round === this.round);
    return h(
      "section",
      { class: "card", key: "clients", "aria-labelledby": "clients" },
      h("h2", { id: "clients" }, `Clients of round ${this.round}`),
      !this.detail.value && pending(this.detail),
      this.detail.value && !found && h("p", { class: "mute" }, `This session has no round ${this.round} (yet).`),
      found && (found.clients.length ? clientsTable(found.clients) : h("p", { class: "mute" }, "Nobody was asked yet.")),
    );
  }

  #config(session) {
    const { client_settings: settings, ...config } = session.config;
    const known = this.app.state.detailed.has(this.id);
    return h(
      "section",
      { class: "card", key: "config", "aria-labelledby": "config" },
      h("h2", { id: "config" }, "How it is run"),
      facts([
        ["newest model", known && [modelLink(session.model), " ", download(this.app, `models/${encodeURIComponent(session.model)}/content`, `${session.model}.npz`)]],
        ["seed", modelLink(session.seed)],
        ["package", id(session.package)],
        ["started", time(session.created_at)],
        ["ended", time(session.finished_at)],
        ["took", session.finished_at && seconds((new Date(session.finished_at) - new Date(session.created_at)) / 1000)],
        ...Object.entries(config).map(([name, value]) => [name.replace(/_s$/, " (s)").replaceAll("_", " "), written(value)]),
      ]),
      Object.keys(settings).length > 0 && [h("h3", null, "Client settings"), h("pre", null, JSON.stringify(settings, null, 2))],
    );
  }
}

function nothingMeasured(session, rounds) {
  if (rounds.length) return "No round has measured anything.";
  return session.status === "running" ? "The first round is not over yet." : "No round was completed.";
}

function series(rounds, name) {
  const points = (of) => rounds.filter((each) => Number.isFinite(each[of]?.[name])).map((each) => [each.round, each[of][name]]);
  return [
    { name: "train", points: points("train_metrics") },
    { name: "validate", points: points("metrics") },
  ].filter((each) => each.points.length);
}

function written(value) {
  if (value === null || value === "") return null;
  if (typeof value === "object") return Object.keys(value).length ? h("code", null, JSON.stringify(value)) : null;
  return typeof value === "number" ? short(value) : String(value);
}

function present(session, progress) {
  const round = progress?.round ? `round ${progress.round}: ` : "";
  const heard = progress?.asked ? `, ${progress.counted} of ${progress.asked} in` : "";
  return `${round}${session.phase}${heard}`;
}

/** Who is at which stage; empty where nobody is. */
function byStage({ stages }) {
  const groups = new Map(STAGES.map((stage) => [stage, []]));
  for (const [client, stage] of Object.entries(stages ?? {})) groups.set(stage, [...(groups.get(stage) ?? []), client]);
  return h(
    "ul",
    { class: "stages" },
    [...groups].filter(([, clients]) => clients.length).map(([stage, clients]) =>
      h(
        "li",
        { key: stage },
        h("span", { class: `swatch stage-${lookOf(stage)}` }),
        h("strong", null, stage),
        ` ${clients.sort().slice(0, 8).join(", ")}${clients.length > 8 ? ` and ${clients.length - 8} more` : ""}`,
      ),
    ),
  );
}

function clientNames(state) {
  return (state.nodes ?? []).filter((node) => node.kind === "client").map((node) => node.name);
}
