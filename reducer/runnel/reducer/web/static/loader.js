// Keeps the state of the network as the reducer has it: read once, then brought up to date by events.

import { coalesced, all } from "./resources.js";
import { Feed } from "./stream.js";

const LISTED = 20;
const AT_ONCE = 4;
const HISTORY = 100;

export class Loader {
  /**
   * @param {object} options
   * @param {import("./api.js").Api} options.api
   * @param {import("./state.js").State} options.state
   * @param {(event: object | null, stale: Set<string>) => void} options.changed is told what happened (null: anything
   *   may have, since events were missed) and what has to be read anew by those who show it.
   * @param {(problem: Error) => void} options.report
   */
  constructor({ api, state, changed, report }) {
    Object.assign(this, { api, state, changed, report });
    this.closed = false;
    this.reads = new Map([
      ["status", this.#guarded(async () => this.#set({ status: await api.get("status") }))],
      ["nodes", this.#guarded(async () => this.#set({ nodes: await all(api, "nodes") }))],
      ["sessions", this.#guarded(() => this.#readSessions())],
    ]);
    this.waiting = [];
    this.busy = 0;
    this.underWay = new Set(); // of each read, the events that were told since it was asked for
    this.feed = new Feed({
      api,
      begin: () => this.#begin(),
      happened: (event) => this.#take(event),
      changed: (live, problem) => this.#connection(live, problem),
    });
  }

  /** Read everything and follow what happens, until closed or refused. */
  run() {
    return this.feed.run();
  }

  close() {
    this.closed = true;
    this.feed.close();
  }

  async #begin() {
    const bearings = await this.api.get("bearings");
    this.#set({ bearings });
    // What passed while nobody listened is told by no event: everything is read anew.
    this.state.progress.clear();
    this.state.stages.clear();
    this.state.suspect = new Set(this.state.detailed);
    await Promise.all([...[...this.reads.values()].map((read) => read()), this.#readHistory(bearings.newest_event)]);
    this.changed(null, new Set(["nodes", "sessions", "tasks", "models", "packages", "tokens"]));
    return bearings.newest_event;
  }

  #connection(live, problem) {
    if (this.state.live !== live || problem) {
      const wasLive = this.state.wasLive || live;
      this.#set({ live, wasLive, problem: live ? null : (problem ?? this.state.problem) });
      this.changed(null, new Set());
    }
  }

  #take(event) {
    const stale = new Set(this.state.take(event));
    for (const meanwhile of this.underWay) meanwhile.push(event);
    for (const name of stale) {
      if (this.reads.has(name)) this.reads.get(name)();
      else if (name === event.session) this.session(name);
    }
    this.changed(event, stale);
  }

  /** Read what happened last, for a page that has just been opened. */
  async #readHistory(newest) {
    if (this.state.activity.length) return;
    const page = await this.api.get("events", { after: Math.max(0, newest - HISTORY), limit: HISTORY });
    if (!this.closed) this.state.remember(page.items.filter((event) => event.seq <= newest));
  }

  /** Ask for documents and take them in, then once more what was told meanwhile: the answer may be older than that. */
  async learn(ask, know) {
    const meanwhile = [];
    this.underWay.add(meanwhile);
    try {
      const answer = await ask();
      if (!this.closed) {
        know(answer);
        for (const event of meanwhile) this.state.apply(event);
      }
      return answer;
    } finally {
      this.underWay.delete(meanwhile);
    }
  }

  async #readSessions() {
    const shown = Math.max(LISTED, this.state.listed?.length ?? 0);
    await this.#list({ limit: Math.min(shown, 1000) }, []);
  }

  /** List more of the older sessions. */
  async moreSessions() {
    try {
      await this.#list({ limit: LISTED, cursor: this.state.moreSessions }, this.state.listed);
    } catch (problem) {
      this.report(problem);
    }
  }

  async #list(query, before) {
    await this.learn(() => this.api.get("sessions", query), (page) => {
      for (const item of page.items) {
        const current = this.state.isCurrent(item);
        this.state.know(item, { detailed: false });
        if (!current) this.session(item.session);
      }
      const ids = page.items.map((item) => item.session);
      this.#set({ listed: [...new Set([...before, ...ids])], moreSessions: page.next });
    });
    this.changed(null, new Set());
  }

  /** Read a session with its rounds, a few at a time. */
  session(id) {
    if (!this.waiting.includes(id)) this.waiting.push(id);
    this.#drain();
  }

  async #drain() {
    if (this.busy >= AT_ONCE || !this.waiting.length || this.closed) return;
    this.busy += 1;
    const id = this.waiting.shift();
    try {
      await this.learn(
        () => this.api.get(`sessions/${encodeURIComponent(id)}`),
        (session) => this.state.know(session, { detailed: true }),
      );
      this.changed(null, new Set());
    } catch (problem) {
      this.report(problem);
    } finally {
      this.busy -= 1;
      this.#drain();
    }
  }

  #set(values) {
    if (!this.closed) Object.assign(this.state, values);
  }

  #guarded(work) {
    return coalesced(async () => {
      try {
        await work();
        this.changed(null, new Set());
      } catch (problem) {
        this.report(problem);
      }
    });
  }
}
