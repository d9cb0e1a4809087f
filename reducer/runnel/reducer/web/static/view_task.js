import { h } from "./dom.js";
import { plural, seconds, short, time } from "./format.js";
import { facts, pending, status } from "./parts.js";
import { paced, Resource } from "./resources.js";
import { RunCard } from "./run_card.js";
import { countsOf, hasEnded, moves, progressOf, RUN_STATES, strip, swatch } from "./run_states.js";
import { runsTable } from "./run_rows.js";

const RUNS_SHOWN = 50;
const RUNS_MORE = 200;
const NAMED = 12;

/** One task: how far it is at each site, why not further, and what came of it. */
export class TaskView {
  constructor(app, task) {
    this.app = app;
    this.id = task;
    this.path = `tasks/${encodeURIComponent(task)}`;
    this.told = new Map(); // run → state, as events told it; what is read meanwhile may be older
    this.entry = new Resource(app, this.path);
    this.entry.read = async () => this.#newest(await app.api.get(this.path));
    this.stopped = false;
    this.refresh = paced(() => (this.stopped ? null : this.entry.load()));
    this.shown = RUNS_SHOWN;
    this.state = null; // only runs that are so are listed
    this.card = null; // of the run that is looked at
    this.opened = false; // and that somebody has just opened, far below perhaps
  }

  get task() {
    return this.entry.value;
  }

  get title() {
    return this.task?.name || this.id;
  }

  async start() {
    await this.entry.load();
    if (this.task && this.task.task !== this.id) {
      // It was named by the beginning of its id.
      window.location.replace(`#/tasks/${encodeURIComponent(this.task.task)}`);
    }
  }

  stop() {
    this.stopped = true;
    this.card?.stop();
  }

  drawn() {
    this.card?.drawn();
    const heading = this.opened ? document.getElementById("run") : null;
    if (!heading) return;
    this.opened = false;
    heading.focus({ preventScroll: true });
    heading.scrollIntoView({ block: "nearest" });
  }

  query(query) {
    const state = query.get("state");
    this.state = RUN_STATES.includes(state) ? state : null;
    const run = query.get("run");
    if (run === (this.card?.id ?? null)) return;
    this.card?.stop();
    this.opened = run !== null && this.task !== null;
    this.card = run === null ? null : new RunCard(this.app, this.path, run, () => this.refresh());
    this.card?.start();
  }

  take(event, stale) {
    if (event === null) {
      if (!stale.has("tasks")) return;
      this.told.clear();
      this.entry.load();
      this.card?.start();
    } else if (event.session === this.id) {
      if (event.kind === "run.state") this.#moved(event.data);
      this.card?.take(event);
      if (event.kind !== "progress") this.refresh();
    } else if (event.kind === "task.created" || event.kind === "task.ended") {
      this.card?.others();
    }
  }

  #moved({ run, state }) {
    this.told.set(run, state);
    if (this.task) this.entry.value = this.#newest(this.task);
  }

  /** The task as it is read, and as events have told of it since. */
  #newest(task) {
    let changed = false;
    const runs = task.runs.map((run) => {
      const told = this.told.get(run.run);
      if (told === undefined || !moves(run.state, told)) return run;
      changed = true;
      return { ...run, state: told, detail: "" };
    });
    return changed ? { ...task, runs, counts: countsOf(runs) } : task;
  }

  async #cancel() {
    const { all, ended } = progressOf(this.task.counts);
    const sure = await this.app.confirm({
      title: `Cancel ${this.title}?`,
      text: `What goes on at ${plural(all - ended, "site")} is ended and gives nothing out. What is done stays.`,
      yes: "Cancel the task",
    });
    if (!sure) return;
    await this.app.attempt(() => this.app.api.post(`${this.path}/cancel`));
    this.entry.load();
  }

  // ---- what they see

  render() {
    const { task } = this;
    if (!task) return h("section", { class: "card" }, h("h1", null, this.id), pending(this.entry));
    const run = task.runs.find((each) => each.run === this.card?.id);
    return [
      this.#head(task),
      this.card && this.card.render(task, run),
      this.#runs(task),
      this.#description(task),
    ];
  }

  #head(task) {
    const { all, ended } = progressOf(task.counts);
    return h(
      "section",
      { class: "card", key: "head" },
      h(
        "div",
        { class: "head" },
        h("div", null, h("h1", null, this.title, " ", status(task.status)), h("code", { class: "mute" }, task.task)),
        this.app.state.mayAsk && ended < all &&
          h("div", { class: "buttons" }, h("button", { type: "button", class: "danger", onclick: () => this.#cancel() }, "Cancel the task")),
      ),
      h("div", { class: "whole" }, strip(task.counts)),
      h("p", { class: "present" }, h("strong", null, `${short(ended)} of ${plural(all, "site")}`), " ended"),
      awaiting(task),
      facts([
        ["asked by", task.user],
        ["started", time(task.created_at)],
        ["ended", time(task.finished_at)],
        ["took", task.finished_at && seconds((new Date(task.finished_at) - new Date(task.created_at)) / 1000)],
        ["expires", !task.finished_at && time(task.expires_at)],
      ]),
    );
  }

  #runs(task) {
    const found = this.state === null ? task.runs : task.runs.filter((run) => run.state === this.state);
    const shown = found.slice(0, this.shown);
    const showMore = () => {
      this.shown += RUNS_MORE;
      this.app.redraw();
    };
    return h(
      "section",
      { class: "card", key: "runs", "aria-labelledby": "runs" },
      h("div", { class: "head" }, h("h2", { id: "runs" }, "Sites"), this.#filters(task)),
      shown.length
        ? runsTable(this.app.state, task, shown, { chosen: this.card?.id ?? null, query: this.#query.bind(this) })
        : h("p", { class: "mute" }, "No site is so."),
      shown.length < found.length && h("button", { type: "button", onclick: showMore }, `Show more of ${short(found.length)}`),
    );
  }

  /** The address of this task with other choices. */
  #query(changes) {
    const chosen = { run: this.card?.id ?? null, state: this.state, ...changes };
    const there = Object.entries(chosen).filter(([, value]) => value !== null);
    const query = new URLSearchParams(there).toString();
    return `#/tasks/${encodeURIComponent(this.id)}${query ? `?${query}` : ""}`;
  }

  #filters(task) {
    const states = RUN_STATES.filter((state) => task.counts[state]);
    const link = (state, text, mark) =>
      h("li", { key: state ?? "all" }, h("a", { href: this.#query({ state }), class: "pick", "aria-current": this.state === state ? "true" : null }, mark, text));
    return h(
      "ul",
      { class: "picks", "aria-label": "Sites by state" },
      link(null, `all ${short(task.runs.length)}`, null),
      states.map((state) => link(state, `${state} ${short(task.counts[state])}`, swatch(state))),
    );
  }

  #description({ spec, parent_run: parent }) {
    if (!spec) return null;
    const executors = spec.executors.length === 1 ? "image" : "images";
    const { name: _name, ...described } = spec;
    return h(
      "section",
      { class: "card", key: "spec", "aria-labelledby": "spec" },
      h("h2", { id: "spec" }, "What runs"),
      spec.description && h("p", { class: "written" }, spec.description),
      facts([
        [executors, spec.executors.map((each, index) => h("div", { key: index }, h("code", { class: "break" }, each.image)))],
        ["contract", spec.contract ?? "plain"],
        ["data", (spec.selections ?? []).map((each) => each.database ?? "default").join(", ")],
        ["whole databases", (spec.databases ?? []).join(", ")],
        ["tags", Object.entries(spec.tags ?? {}).map(([key, value]) => (value ? `${key}=${value}` : key)).join(", ")],
        ["asked for by the run", parent && h("code", null, parent)],
      ]),
      h("details", null, h("summary", null, "All of the description"), h("pre", { tabindex: "0" }, JSON.stringify(described, null, 2))),
    );
  }
}

/** Who has to act, where results wait. */
function awaiting(task) {
  const sites = task.runs.filter((run) => run.state === "awaiting-release").map((run) => run.site);
  if (!sites.length || hasEnded(task.status)) return null;
  const named = sites.slice(0, NAMED).join(", ") + (sites.length > NAMED ? ` and ${short(sites.length - NAMED)} more` : "");
  return h(
    "p",
    { class: "reason waits" },
    h("strong", null, "Somebody has to look at the results of "), h("strong", null, named), ". ",
    "There, its custodian does so by ", h("code", null, "runnel client results list"),
    "; from here only whom the site’s policy names.",
  );
}
