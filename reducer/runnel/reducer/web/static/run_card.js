import { h } from "./dom.js";
import { bytes, id, seconds, short, time } from "./format.js";
import { Lines, lineClass } from "./lines.js";
import { download, facts, pending, status, table } from "./parts.js";
import { paced, Resource } from "./resources.js";
import { why } from "./run_rows.js";
import { hasEnded, taskLink } from "./run_states.js";
import { stepsOf, timeline } from "./run_timeline.js";

const EVENTS_PAGE = 1000;
const LOOK_MS = 2000;
const FILE_COLUMNS = [
  { name: "File" }, { name: "Size", class: "number" }, { name: "Kind", class: "wide" }, { name: "SHA-256", class: "wide" }, { name: "" },
];
const LINE_COLUMNS = [{ name: "Time", class: "wide" }, { name: "From", class: "wide" }, { name: "Line" }];
const LIMIT = /^(\w+)_limit$/;
const LIMITS = new Map([["pids", "number of processes"], ["files", "number of files"], ["output", "size of results"]]);

/** One run of a task: how it went, what it wrote, what it gave out, and who has to decide. */
export class RunCard {
  constructor(app, taskPath, run, changed) {
    this.app = app;
    this.id = run;
    this.path = `runs/${encodeURIComponent(run)}`;
    this.changed = changed;
    this.events = new Resource(app, `${taskPath}/events`);
    this.events.read = () => this.#readEvents();
    this.after = []; // events that came since they were read
    this.log = new RunLog(app, this.path);
    this.children = new Resource(app, "tasks", { parent_run: run });
    this.others = paced(() => (this.stopped ? null : this.children.load())); // other tasks began or ended
    this.stopped = false;
    this.timer = null;
    this.atWork = false;
    this.decide = (event) => this.#decide(event);
  }

  start() {
    this.after = [];
    this.events.load();
    this.children.load();
    if (!this.app.state.mayAsk) return;
    this.log.poke();
    // Of lines no event tells.
    this.timer ??= setInterval(() => {
      if (this.atWork && !document.hidden) this.log.poke();
    }, LOOK_MS);
  }

  stop() {
    this.stopped = true;
    clearInterval(this.timer);
    this.log.stop();
  }

  drawn() {
    this.log.drawn();
  }

  take(event) {
    if (event.data.run !== this.id) return;
    this.after.push(event);
    if (this.app.state.mayAsk) this.log.poke();
  }

  async #readEvents() {
    const found = [];
    let after = null;
    do {
      const page = await this.app.api.get(this.events.path, { limit: EVENTS_PAGE, after });
      found.push(...page.items.filter((event) => event.data.run === this.id));
      after = page.next;
    } while (after);
    return found;
  }

  /** What happened to it, oldest first. */
  get #history() {
    const read = this.events.value ?? [];
    const last = read.at(-1)?.seq ?? 0;
    return [...read, ...this.after.filter((event) => event.seq > last)];
  }

  async #decide(event) {
    event.preventDefault();
    const release = event.submitter.value === "release";
    const reason = new FormData(event.currentTarget).get("reason").trim();
    const sure = await this.app.confirm({
      title: release ? "Let the results leave the site?" : "Keep the results at the site?",
      text: "What you decide is told to the site. It counts there if its policy names you and nobody at the site was faster, and then it is final.",
      yes: release ? "Approve" : "Reject",
    });
    if (!sure) return;
    await this.app.attempt(() => this.app.api.post(`${this.path}/release`, { release, reason }));
    this.changed();
  }

  // ---- what they see

  render(task, run) {
    if (!run) {
      return h("section", { class: "card", key: "run" }, h("h2", null, "Run"), h("p", { class: "mute" }, `This task has no run ${this.id}.`));
    }
    this.atWork = !hasEnded(run.state);
    return h(
      "section",
      { class: "card", key: "run", "aria-labelledby": "run" },
      h(
        "div",
        { class: "head" },
        h("div", null, h("h2", { id: "run", tabindex: "-1" }, `At ${run.site} `, status(run.state)), h("code", { class: "mute" }, run.run)),
        h("a", { href: `#/tasks/${encodeURIComponent(task.task)}`, class: "close" }, "Close"),
      ),
      this.#reason(task, run),
      run.state === "awaiting-release" && this.app.state.mayAsk && this.#form(),
      timeline(stepsOf(run, this.#history.filter((event) => event.kind === "run.state").map(({ at, data }) => ({ at, state: data.state })))),
      facts([
        ["exit code", run.exit_code === null ? null : String(run.exit_code)],
        ["limit that it hit", limitOf(run)],
        ["code of the failure", run.error_code && h("code", null, run.error_code)],
        ["attempt", run.attempt > 1 ? String(run.attempt) : null],
        ["image", id(run.image_digest, 20)],
        ["seconds at the site", elapsed(run.elapsed_s)],
        [run.removed_at ? "files were removed" : "files are kept until", time(run.removed_at ?? run.kept_until)],
      ]),
      this.#files(run),
      this.#children(),
      this.app.state.mayAsk && this.#log(run),
    );
  }

  #reason(task, run) {
    const node = (this.app.state.nodes ?? []).find((each) => each.name === run.site);
    const told = this.app.state.stageOf(task.task, run.site);
    if (run.state === "awaiting-release") return waits(run, this.#history, why(run, false, told));
    const text = hasEnded(run.state) ? run.error || run.error_code : why(run, node?.status === "away", told);
    const failed = hasEnded(run.state) && run.state !== "cancelled";
    return text ? h("p", { class: failed ? "reason failed" : "reason" }, text) : null;
  }

  #form() {
    return h(
      "form",
      { class: "decide", onsubmit: this.decide, "aria-label": "Decide about the results" },
      h("input", { name: "reason", maxlength: 500, placeholder: "Why (for the site’s records)", "aria-label": "Why" }),
      h("button", { type: "submit", value: "release", class: "primary" }, "Approve"),
      h("button", { type: "submit", value: "block", class: "danger" }, "Reject"),
    );
  }

  #files(run) {
    if (!run.files.length) return null;
    const may = this.app.state.mayAsk && !run.removed_at;
    const rows = run.files.map((file, index) =>
      h(
        "tr",
        { key: index },
        h("th", { scope: "row" }, file.name),
        h("td", { class: "number" }, bytes(file.size_bytes)),
        h("td", { class: "wide" }, file.media_type),
        h("td", { class: "wide" }, id(file.sha256)),
        h("td", null, may && download(this.app, `${this.path}/files/${encodeURIComponent(file.name)}`, `${run.site}-${file.name}${SUFFIXES.get(file.media_type) ?? ""}`)),
      ),
    );
    return [h("h3", { key: "files" }, "Results"), table("Results", FILE_COLUMNS, rows)];
  }

  #children() {
    const { value } = this.children;
    if (!value?.items.length) return null;
    return [
      h("h3", null, "Sub-tasks that it asked for"),
      h("ul", { class: "chain" }, value.items.map((each) =>
        h("li", { key: each.task }, taskLink(each.task, each.name || each.task), " ", status(each.status)))),
      value.next && h("p", { class: "mute" }, `The newest ${short(value.items.length)}.`),
    ];
  }

  #log(run) {
    return [
      h("h3", null, "What it wrote"),
      this.log.body(run.log_tail ? "Nothing came while it ran. Its last lines:" : "Nothing yet."),
      !this.log.rows.length && run.log_tail && h("pre", { class: "tail", tabindex: "0" }, run.log_tail),
    ];
  }
}

const SUFFIXES = new Map([
  ["application/zip", ".zip"], ["text/plain", ".txt"], ["text/csv", ".csv"], ["application/json", ".json"],
]);

class RunLog extends Lines {
  constructor(app, path) {
    super(app, `${path}/logs`, LINE_COLUMNS);
  }

  row(line) {
    return h(
      "tr",
      { key: line.id, class: lineClass(line.stream) },
      h("td", { class: "wide" }, time(line.at)),
      h("td", { class: "wide" }, line.stream),
      h("td", { class: "text" }, line.text),
    );
  }
}

function waits(run, history, told) {
  const decided = history.findLast((event) => event.kind === "run.release");
  return h(
    "p",
    { class: "reason waits" },
    h("strong", null, `It is done, and its results wait at ${run.site} until somebody there has looked at them.`),
    decided && [` ${decided.data.user || "Somebody"} ${decided.data.release ? "approved" : "rejected"} them from here at `, time(decided.at), `; the site was told. ${told}`],
  );
}

function limitOf({ error_code: code }) {
  const [, limit] = LIMIT.exec(code ?? "") ?? [];
  return limit && (LIMITS.get(limit) ?? limit);
}

function elapsed(parts) {
  const there = Object.entries(parts ?? {}).filter(([, value]) => Number.isFinite(value));
  return there.map(([part, value]) => `${part} ${seconds(value)}`).join(", ");
}
