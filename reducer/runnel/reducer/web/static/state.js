// What is known of the network, brought up to date by its events. No document, no requests.

const ACTIVITY_KEPT = 60;
export const STAGES = ["preparing", "fetching", "running", "pushing", "counted", "failed"];
const WAITING = new Set(["awaiting approval", "outside hours"]); // a site that does not take the work yet
const REFUSED = "refused by its site"; // as long as its policy is what it is

/** How a stage is drawn: by its own colour, that of waiting, or, when it is told in words, that of running. */
export function lookOf(stage) {
  if (stage === REFUSED) return "failed";
  return STAGES.includes(stage) ? stage : WAITING.has(stage) ? "awaiting" : "running";
}

export const PHASES = ["selecting", "training", "reducing", "validating"];
const TOLD_BY_OTHERS = new Set(["session.phase", "progress", "model.removed", "api.call"]);
const TOLD_RUNS = new Set(["awaiting-release", "failed", "rejected"]);

export class State {
  constructor() {
    this.bearings = null;
    this.status = null;
    this.nodes = null; // all of them, by name
    this.sessions = new Map(); // id → document; its rounds are there once `detailed` has the id
    this.detailed = new Set();
    this.suspect = new Set(); // of the detailed ones, those that may have changed while nobody listened
    this.listed = null; // ids, newest first
    this.moreSessions = null; // cursor
    this.progress = new Map(); // session id → {round, work, asked, counted, failed, stages}; the newest news last
    this.stages = new Map(); // task id → {site: "state: what it does"}
    this.activity = []; // events, newest first
    this.live = false;
    this.wasLive = false;
    this.problem = null;
  }

  get maySteer() {
    return ["operator", "initiator"].includes(this.bearings?.role);
  }

  /** Whether this person starts tasks, and so may cancel them and have their results. */
  get mayAsk() {
    return ["operator", "initiator", "researcher"].includes(this.bearings?.role);
  }

  /** How far the run of a task is at a site, as it said last: "state: what it does", or null. */
  stageOf(task, site) {
    const stages = this.stages.get(task) ?? {};
    return Object.hasOwn(stages, site) ? stages[site] : null; // a site may be called like what every object has
  }

  get isOperator() {
    return this.bearings?.role === "operator";
  }

  /** What a client does now: {stage, session, round, work}, or null when it was asked for nothing. */
  doing() {
    const found = new Map();
    for (const [session, { round, work, stages }] of this.progress) {
      for (const [client, stage] of Object.entries(stages ?? {})) found.set(client, { stage, session, round, work });
    }
    return found;
  }

  /** The sessions that are listed, newest first. */
  get list() {
    return (this.listed ?? []).map((id) => this.sessions.get(id)).filter(Boolean);
  }

  /** Take in a session's document; one of a listing has no rounds of its own. */
  know(session, { detailed }) {
    const known = this.sessions.get(session.session);
    const rounds = detailed || !known ? session.rounds : known.rounds;
    this.sessions.set(session.session, { ...session, rounds });
    if (detailed) {
      this.detailed.add(session.session);
      this.suspect.delete(session.session);
    }
    if (session.status !== "running") this.progress.delete(session.session);
  }

  /** Whether the rounds that are known of a session are those of this document from a listing. */
  isCurrent(listed) {
    const known = this.sessions.get(listed.session);
    const read = this.detailed.has(listed.session) && !this.suspect.has(listed.session);
    return read && listed.status !== "running" && known.finished_at === listed.finished_at;
  }

  /** Take in an event and remember that it happened; return what has to be asked for anew. */
  take(event) {
    this.remember([event]);
    return this.apply(event);
  }

  /** Change what is known as an event tells; return what has to be asked for anew: names of listings, ids of sessions. */
  apply(event) {
    const { kind, session, data } = event;
    switch (kind) {
      case "progress":
        if (data.task) {
          this.stages.set(data.task, data.stages);
          return [];
        }
        this.progress.delete(session);
        this.progress.set(session, data);
        if (!data.stalled && !this.sessions.get(session)?.reason) return [];
        return this.#change(session, { reason: data.stalled ?? null });
      case "session.phase":
        this.progress.delete(session);
        return this.#change(session, { phase: data.phase });
      case "round.committed":
        return this.#commit(session, data);
      case "session.ended":
        this.progress.delete(session);
        this.#change(session, { status: data.status, phase: data.status, reason: data.reason });
        return [session, "status", "models"];
      case "session.created":
      case "session.resumed":
      case "session.extended":
      case "session.updated":
        return [session, "sessions", "status"];
      case "task.ended":
        this.stages.delete(session);
        return ["tasks"];
      case "task.created":
      case "run.state":
      case "run.release":
        return ["tasks"];
      case "node.attached":
      case "node.left":
        return ["nodes", "status"];
      case "model.added":
      case "model.removed":
        return ["models", "status"];
      case "package.added":
      case "package.retired":
      case "package.restored":
        return ["packages", "status"];
      case "token.created":
      case "token.revoked":
        return ["tokens"];
      default:
        return [];
    }
  }

  /** Add events, oldest first, to what happened lately. */
  remember(events) {
    const told = events.filter((event) => isNews(event)).reverse();
    this.activity = [...told, ...this.activity].slice(0, ACTIVITY_KEPT);
  }

  #change(id, changes) {
    const known = this.sessions.get(id);
    if (!known) return [id];
    this.sessions.set(id, { ...known, ...changes });
    return [];
  }

  #commit(id, round) {
    const known = this.sessions.get(id);
    if (!known || !this.detailed.has(id)) return [id, "models"];
    const rounds = known.rounds.filter((item) => item.round !== round.round);
    rounds.push(round);
    rounds.sort((a, b) => a.round - b.round);
    this.sessions.set(id, { ...known, rounds, model: round.model ?? known.model });
    return ["models"];
  }
}

function isNews({ kind, data }) {
  return kind === "run.state" ? TOLD_RUNS.has(data.state) : !TOLD_BY_OTHERS.has(kind);
}

export function committed(session) {
  return session.rounds.filter((round) => round.status === "committed");
}

/** The names of the metrics of some rounds: that of the stop rule first, then accuracy, then by name. */
export function metricNames(rounds, session, of = "metrics") {
  const ruling = (session.config.stop_when ?? "").split(/[<>]/)[0];
  return ordered(new Set(rounds.flatMap((round) => Object.keys(round[of] ?? {}))), ruling);
}

/** Names of metrics, that which matters most first. */
export function ordered(names, ruling = "") {
  const place = (name) => (name === ruling ? 0 : name === "accuracy" ? 1 : 2);
  return [...names].sort((a, b) => place(a) - place(b) || (a < b ? -1 : 1));
}

/** The newest value of the metric that matters most, as [name, value], or null. */
export function newestMetric(session) {
  const rounds = committed(session);
  const [name] = metricNames(rounds, session);
  if (name === undefined) return null;
  const last = rounds.findLast((round) => typeof round.metrics[name] === "number");
  return last ? [name, last.metrics[name]] : null;
}
