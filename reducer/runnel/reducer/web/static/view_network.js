import { h } from "./dom.js";
import { bytes, plural, short, time } from "./format.js";
import { empty, joinEnd, sessionLink } from "./parts.js";
import { picture } from "./picture.js";
import { taskLink } from "./run_states.js";
import { sessionsTable } from "./session_rows.js";
import { noSessions } from "./view_sessions.js";

const SESSIONS_SHOWN = 5;
const EVENTS_SHOWN = 12;

/** The network at a glance: who is where and does what, the newest sessions, what happened. */
export class NetworkView {
  title = "Network";

  constructor(app) {
    this.app = app;
    this.width = 0;
    this.observer = new ResizeObserver(([entry]) => {
      const width = Math.floor(entry.contentRect.width);
      if (width === this.width) return;
      this.width = width;
      app.redraw();
    });
    this.watch = (element) => this.observer.observe(element);
  }

  stop() {
    this.observer.disconnect();
  }

  render() {
    const { state } = this.app;
    return [
      h("h1", { class: "unseen" }, "Network"),
      figures(state),
      h(
        "section",
        { class: "card", "aria-labelledby": "picture" },
        h("div", { class: "head" }, h("h2", { id: "picture" }, "Who is where"), stages()),
        h("div", { class: "canvas", ref: this.watch }, this.#picture()),
        state.nodes?.length === 0 && noNodes(state),
      ),
      h(
        "section",
        { class: "card", "aria-labelledby": "newest" },
        h("div", { class: "head" }, h("h2", { id: "newest" }, "Newest sessions"), h("a", { href: "#/sessions" }, "All sessions")),
        state.listed?.length === 0 && noSessions(state),
        state.listed?.length > 0 && sessionsTable(state, state.list.slice(0, SESSIONS_SHOWN), "Newest sessions"),
      ),
      h("section", { class: "card", "aria-labelledby": "happened" }, h("h2", { id: "happened" }, "What happened"), activity(state)),
    ];
  }

  #picture() {
    const { state } = this.app;
    if (!this.width || state.nodes === null) return null;
    return picture({ nodes: state.nodes, doing: state.doing(), reducerDoes: reducerDoes(state), width: this.width });
  }
}

function reducerDoes(state) {
  const running = state.list.filter((session) => session.status === "running");
  if (running.length === 0) return "idle";
  return running.length === 1 ? running[0].phase : `${running.length} sessions`;
}

function figures(state) {
  const { status, nodes } = state;
  if (!status) return null;
  const away = (nodes ?? []).filter((node) => node.status === "away").length;
  const tiles = [
    ["clients", status.clients_attached],
    ["combiners", status.combiners_attached],
    ["away", nodes ? away : null],
    ["running sessions", status.sessions_running],
    ["models and packages", bytes(status.blobs_bytes)],
  ];
  return h(
    "dl",
    { class: "tiles", "aria-label": "The network at a glance" },
    tiles.map(([name, value]) =>
      h("div", { key: name, class: "tile" }, h("dt", null, name), h("dd", null, typeof value === "number" ? short(value) : value)),
    ),
  );
}

function stages() {
  return h(
    "ul",
    { class: "legend", "aria-label": "Colours of the picture" },
    ["idle", "preparing", "fetching", "running", "pushing", "counted", "failed", "awaiting"].map((stage) =>
      h("li", { key: stage }, h("span", { class: `swatch stage-${stage}` }), stage),
    ),
  );
}

function noNodes(state) {
  const rpc = state.status?.rpc_address ?? "HOST:PORT";
  return empty(
    "Nobody has attached yet. A client beside its data, and, for many of them, a combiner in between:",
    `runnel client --network ${rpc} --name site-1 --data default=PATH${joinEnd(state)}`,
    `runnel combiner --network ${rpc} --name combiner-1${joinEnd(state)}`,
  );
}

function activity(state) {
  if (!state.activity.length) return h("p", { class: "mute" }, "Nothing since this page was opened.");
  return h(
    "ol",
    { class: "activity" },
    state.activity.slice(0, EVENTS_SHOWN).map((event) =>
      h("li", { key: event.seq }, time(event.at), " ", h("span", null, told(state, event))),
    ),
  );
}

function told(state, { kind, session, data }) {
  const link = session ? sessionLink(session, state.sessions.get(session)?.name || session) : null;
  const sentences = {
    "session.created": () => [link, " was started"],
    "session.resumed": () => [link, " was resumed"],
    "session.extended": () => [link, ` was extended to ${data.rounds} rounds`],
    "session.updated": () => [link, ` has another package from round ${data.from_round} on`],
    "session.ended": () => [link, ` ${data.status}`, data.reason ? `: ${data.reason}` : ""],
    "round.committed": () => [link, ` committed round ${data.round}: ${data.updates} updates, ${data.late} late, ${data.failed} failed`],
    "round.retried": () => [link, ` opened round ${data.round} again: ${data.failed} failed, ${data.late} did not answer`],
    "client.awaiting": () => [`${data.client}'s site does not take the work of `, link, ` yet`, failureOf(data)],
    "client.failed": () => [`${data.client} failed in `, link, failureOf(data)],
    "task.created": () => [taskLink(session, data.name || session), ` is asked of ${plural(data.sites?.length ?? 0, "site")}`],
    "run.state": () => [taskLink(session), ` is ${data.state} at ${data.site}`, data.error_code ? `: ${data.error_code}` : ""],
    "run.release": () => [`${data.user || "somebody"} decided from afar on the results of `, taskLink(session), ` at ${data.site}`],
    "task.ended": () => [taskLink(session), ` ended: ${data.status}`],
    "node.attached": () => `${data.name} attached`,
    "node.left": () => `${data.name} left`,
    "package.signed": () => `package ${String(data.digest).slice(0, 12)} was signed by the key ${data.key_id}`,
    "package.added": () => `package ${data.name || String(data.digest).slice(0, 12)} was added`,
    "package.retired": () => `package ${data.name || String(data.digest).slice(0, 12)} was retired`,
    "package.restored": () => `package ${data.name || String(data.digest).slice(0, 12)} may be given to sessions again`,
    "model.added": () => `model ${data.model} was added`,
    "token.created": () => `a token of the role ${data.role} was made${data.name ? ` for ${data.name}` : ""}`,
    "token.revoked": () => `the token ${data.token} was revoked`,
  };
  return Object.hasOwn(sentences, kind) ? sentences[kind]() : kind;
}

function failureOf(data) {
  const what = data.message ?? data.error ?? data.code;
  return what ? `: ${what}` : "";
}
