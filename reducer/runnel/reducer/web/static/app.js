// The page: who looks, at what, and how it is drawn anew.

import { Api } from "./api.js";
import { confirm } from "./confirm.js";
import { render, h } from "./dom.js";
import { chrome, signIn } from "./chrome.js";
import { Loader } from "./loader.js";
import { State } from "./state.js";
import { ModelView, ModelsView } from "./view_models.js";
import { NetworkView } from "./view_network.js";
import { NodesView } from "./view_nodes.js";
import { PackagesView } from "./view_packages.js";
import { SessionView } from "./view_session.js";
import { SessionsView } from "./view_sessions.js";
import { TaskView } from "./view_task.js";
import { TasksView } from "./view_tasks.js";
import { TokensView } from "./view_tokens.js";

const ROUTES = [
  [/^$/, NetworkView],
  [/^sessions$/, SessionsView],
  [/^sessions\/([^/]+)$/, SessionView],
  [/^tasks$/, TasksView],
  [/^tasks\/([^/]+)$/, TaskView],
  [/^models$/, ModelsView],
  [/^models\/([^/]+)$/, ModelView],
  [/^packages$/, PackagesView],
  [/^nodes$/, NodesView],
  [/^tokens$/, TokensView],
];

export class App {
  constructor(host) {
    this.host = host;
    this.api = new Api({ refused: (problem) => this.#refused(problem) });
    this.state = new State();
    this.notice = null; // a problem that a person has to see
    this.asking = null; // why a token is asked for: {detail, hint}
    this.view = null;
    this.path = null;
    this.drawing = false;
  }

  start() {
    window.addEventListener("hashchange", () => this.#go());
    this.connect();
    this.#go();
  }

  /** Begin anew, as whoever the token says. */
  connect() {
    this.loader?.close();
    this.state = new State();
    this.loader = new Loader({
      api: this.api,
      state: this.state,
      changed: (event, stale) => {
        this.view?.take?.(event, stale);
        this.redraw();
      },
      report: (problem) => this.report(problem),
    });
    this.asking = null;
    const { state } = this;
    this.loader.run().then(() => {
      // A token that is for joining the network, not for looking at it.
      if (state === this.state && state.problem?.status === 403) this.#refused(state.problem);
    });
    this.redraw();
  }

  signIn(token) {
    this.api.keepToken(token);
    this.notice = null;
    this.connect();
    this.#go();
  }

  signOut() {
    this.#refused({ message: "You are signed out.", hint: "" });
  }

  #refused(problem) {
    this.loader?.close();
    this.view?.stop?.();
    this.view = null;
    this.path = null;
    // Nothing of what was seen stays on the page of somebody who may not see it (any more).
    this.state = new State();
    const known = this.api.hasToken;
    this.api.keepToken(null);
    this.asking = { detail: known ? problem.message : "This network asks for a token.", hint: problem.hint };
    this.redraw();
  }

  /** Show what went wrong; that the reducer is away is shown elsewhere, until it is back. */
  report(problem) {
    if (problem.status === 0 || problem.status === 401 || problem.name === "AbortError") return;
    this.notice = problem;
    this.redraw();
  }

  /** Do something that a person asked for, and show why it could not be done. */
  async attempt(work) {
    this.notice = null;
    try {
      return await work();
    } catch (problem) {
      if (problem.status === 0) this.notice = problem;
      this.report(problem);
      return undefined;
    } finally {
      this.redraw();
    }
  }

  /** Ask before something that can't be undone; resolves to whether to go on. */
  confirm(question) {
    return confirm(question);
  }

  #go() {
    const [path, query = ""] = decodeHash();
    if (this.asking) return;
    if (path !== this.path) {
      const moved = this.path !== null;
      this.path = path;
      this.notice = null;
      this.view?.stop?.();
      const [pattern, View] = ROUTES.find(([each]) => each.test(path)) ?? [null, null];
      const parts = pattern ? pattern.exec(path).slice(1).map(decodeURIComponent) : [];
      this.view = View ? new View(this, ...parts) : null;
      this.view?.start?.(new URLSearchParams(query));
      window.scrollTo(0, 0);
      // Who reads by ear or keyboard goes on at what is new, not where the link was.
      if (moved) requestAnimationFrame(() => document.getElementById("main")?.focus({ preventScroll: true }));
    }
    this.view?.query?.(new URLSearchParams(query));
    this.redraw();
  }

  /** Draw when the browser is ready to: many changes, one drawing; none while nobody looks. */
  redraw() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame(() => {
      this.drawing = false;
      this.#draw();
    });
  }

  #draw() {
    const title = this.view?.title ?? "Not found";
    document.title = this.asking ? "Sign in · Runnel" : `${title} · Runnel`;
    if (this.asking) {
      render(this.host, signIn(this));
      return;
    }
    const content = this.view ? this.view.render() : nothingHere();
    render(this.host, chrome(this, content));
    this.view?.drawn?.();
  }
}

function decodeHash() {
  return window.location.hash.replace(/^#\/?/, "").split("?");
}

function nothingHere() {
  return h("section", { class: "card" }, h("h1", null, "There is nothing here"), h("a", { href: "#/" }, "To the network"));
}
