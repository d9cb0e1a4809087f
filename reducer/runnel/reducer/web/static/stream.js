// Server-sent events over fetch: EventSource can't send an Authorization header.

const HEARTBEAT_MS = 45_000; // the reducer says something every 15 s
const LONGEST_PAUSE_MS = 10_000;

/** Reads text/event-stream as it arrives, cut anywhere; as https://html.spec.whatwg.org/#parsing-an-event-stream. */
export class EventParser {
  constructor() {
    this.lastId = "";
    this.retryMs = null;
    this.#reset();
  }

  #rest = "";
  #begun = false;
  #kind;
  #data;

  #reset() {
    this.#kind = "";
    this.#data = [];
  }

  /** Take the next piece of the stream; return the events that it completes, as {kind, data, id}. */
  push(text) {
    this.#rest += text;
    if (!this.#begun && this.#rest) {
      this.#begun = true;
      if (this.#rest.startsWith("\ufeff")) this.#rest = this.#rest.slice(1);
    }
    const events = [];
    for (;;) {
      const end = /\r\n|\n|\r/.exec(this.#rest);
      // A carriage return at the very end may be the first half of a line's end.
      if (!end || (end[0] === "\r" && end.index === this.#rest.length - 1)) return events;
      const line = this.#rest.slice(0, end.index);
      this.#rest = this.#rest.slice(end.index + end[0].length);
      const event = this.#take(line);
      if (event) events.push(event);
    }
  }

  #take(line) {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return null;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#kind = value;
    else if (field === "id" && !value.includes("\0")) this.lastId = value;
    else if (field === "retry" && /^\d+$/.test(value)) this.retryMs = Number(value);
    return null;
  }

  #dispatch() {
    const event = this.#data.length ? { kind: this.#kind || "message", data: this.#data.join("\n"), id: this.lastId } : null;
    this.#reset();
    return event;
  }
}

/** Follows the events of the network, again and again, until it is closed. */
export class Feed {
  /**
   * @param {object} options
   * @param {import("./api.js").Api} options.api
   * @param {() => Promise<number>} options.begin is awaited before each connection (it reads what an event can't tell)
   *   and returns the sequence number that the log ends with.
   * @param {(event: object) => void} options.happened takes each event.
   * @param {(live: boolean, problem?: Error) => void} options.changed is told when the connection is there, or gone.
   */
  constructor({ api, begin, happened, changed }) {
    Object.assign(this, { api, begin, happened, changed });
    this.seen = null;
    this.stop = new AbortController();
    this.retryMs = 1000;
  }

  close() {
    this.stop.abort();
  }

  /** Return when it was closed, or when the reducer refuses (401, 403). */
  async run() {
    for (let failures = 0; !this.stop.signal.aborted; failures += 1) {
      try {
        const newest = await this.begin();
        // A log that is shorter than what was seen of it is another one: the state was made anew.
        if (this.seen === null || this.seen > newest) this.seen = newest;
        await this.#listen(() => {
          failures = 0;
        });
        this.changed(false);
      } catch (error) {
        if (this.stop.signal.aborted) return;
        this.changed(false, error);
        if (error.status === 401 || error.status === 403) return;
      }
      const pause = Math.min(this.retryMs * 2 ** failures, LONGEST_PAUSE_MS);
      await this.#rest(pause * (0.75 + Math.random() / 2));
    }
  }

  async #listen(opened) {
    const connection = new AbortController();
    const end = () => connection.abort();
    this.stop.signal.addEventListener("abort", end);
    let watchdog = setTimeout(end, HEARTBEAT_MS);
    try {
      const headers = { Accept: "text/event-stream", "Last-Event-ID": String(this.seen) };
      const answer = await this.api.ask("GET", "events", { headers, signal: connection.signal });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      const parser = new EventParser();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(watchdog);
        watchdog = setTimeout(end, HEARTBEAT_MS);
        opened();
        this.changed(true);
        for (const event of parser.push(value)) this.#hand(event);
        this.retryMs = parser.retryMs ?? this.retryMs;
      }
    } finally {
      clearTimeout(watchdog);
      this.stop.signal.removeEventListener("abort", end);
      end();
    }
  }

  #hand({ kind, data, id }) {
    const event = JSON.parse(data);
    if (kind === "error") throw Object.assign(new Error(event.detail), { status: event.status });
    if (id !== "") this.seen = Number(id);
    this.happened(event);
  }

  #rest(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.stop.signal.addEventListener("abort", () => {
        clearTimeout(timer);
        resolve();
      });
    });
  }
}
