import { h } from "./dom.js";
import { short, time } from "./format.js";
import { commandEnd, empty, more, pending, status, table } from "./parts.js";
import { Listing, paced } from "./resources.js";
import { inWords, progressOf, strip, taskLink } from "./run_states.js";

const COLUMNS = [
  { name: "Task" }, { name: "Status" }, { name: "Sites" }, { name: "Image", class: "wide" }, { name: "Asked by", class: "wide" },
  { name: "Started", class: "wide" },
];
const STATUSES = ["queued", "running", "done", "failed", "cancelled"];

/** All tasks, newest first; those that other runs asked for are with these. */
export class TasksView {
  title = "Tasks";

  constructor(app) {
    this.app = app;
    this.wanted = { status: "", name: "", site: "" };
    this.draft = { ...this.wanted }; // what is typed and not asked for yet
    this.stopped = false;
    this.tasks = this.#listing();
    this.refresh = paced(() => (this.stopped ? null : this.tasks.load()));
    this.filter = (event) => this.#filter(event);
    this.type = ({ target }) => {
      this.draft[target.name] = target.value;
    };
  }

  #listing() {
    const { status: state, name, site } = this.wanted;
    return new Listing(this.app, "tasks", { parent_run: "", status: state || null, name: name || null, site: site || null });
  }

  start() {
    this.tasks.load();
  }

  stop() {
    this.stopped = true;
  }

  query(query) {
    const wanted = { status: query.get("status") ?? "", name: query.get("name") ?? "", site: query.get("site") ?? "" };
    if (Object.entries(wanted).every(([key, value]) => this.wanted[key] === value)) return;
    this.wanted = wanted;
    this.draft = { ...wanted };
    this.tasks = this.#listing();
    this.tasks.load();
  }

  take(_event, stale) {
    if (stale.has("tasks")) this.refresh();
  }

  #filter(event) {
    event.preventDefault();
    const chosen = [...new FormData(event.currentTarget)].filter(([, value]) => value !== "");
    const query = new URLSearchParams(chosen).toString();
    window.location.hash = query ? `#/tasks?${query}` : "#/tasks";
  }

  render() {
    const items = this.tasks.value?.items;
    const filtered = Object.values(this.wanted).some(Boolean);
    return h(
      "section",
      { class: "card" },
      h("div", { class: "head" }, h("h1", null, "Tasks"), (filtered || items?.length > 0) && this.#form()),
      !items && pending(this.tasks),
      items?.length === 0 && (filtered ? h("p", { class: "mute" }, "No task is so.") : noTasks(this.app.state)),
      items?.length > 0 && table("Tasks", COLUMNS, items.map(row)),
      more(this.tasks),
    );
  }

  #form() {
    const { status: state, name, site } = this.draft;
    return h(
      "form",
      { class: "line filters", onsubmit: this.filter, onchange: this.filter, oninput: this.type, role: "search", "aria-label": "Which tasks" },
      h("label", null, "Status", h("select", { name: "status", value: state, "aria-label": "Status" },
        h("option", { value: "", key: "" }, "any"), STATUSES.map((each) => h("option", { value: each, key: each }, each)))),
      h("label", null, "Name begins", h("input", { name: "name", value: name, maxlength: 200, "aria-label": "Name begins", size: 12 })),
      h("label", null, "Site", h("input", { name: "site", value: site, maxlength: 64, "aria-label": "Site", size: 10 })),
    );
  }
}

function row(task) {
  return h(
    "tr",
    { key: task.task },
    h("td", null, h("div", { class: "two" }, taskLink(task.task, task.name || task.task), task.name ? h("code", { class: "mute" }, task.task) : null)),
    h("td", null, status(task.status)),
    h("td", null, sites(task)),
    h("td", { class: "wide" }, images(task)),
    h("td", { class: "wide" }, task.user),
    h("td", { class: "wide" }, time(task.created_at)),
  );
}

function sites({ counts }) {
  const { all, ended } = progressOf(counts);
  return h(
    "div",
    { class: "sites" },
    h("div", { class: "rounds" }, strip(counts), h("span", { class: "count" }, `${short(ended)} / ${short(all)}`)),
    h("div", { class: "mute small" }, inWords(counts)),
  );
}

function images({ spec }) {
  if (!spec) return "";
  const [first, ...others] = spec.executors.map((each) => each.image);
  return [h("code", { class: "break" }, first), others.length > 0 && ` and ${others.length} more`];
}

export function noTasks(state) {
  return empty(
    "No task yet. An image, and the sites at which it is to run, make one:",
    `runnel task run IMAGE --site SITE --wait --output results${commandEnd(state)}`,
  );
}
