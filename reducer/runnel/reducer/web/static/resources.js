// What a view reads from the HTTP interface and reads again when it may have changed.

/** Make a function that runs `work`, one run at a time: called meanwhile, it runs once more afterwards. */
export function coalesced(work) {
  let running = null;
  let again = false;
  const run = async () => {
    do {
      again = false;
      await work();
    } while (again);
  };
  return () => {
    if (running) {
      again = true;
      return running;
    }
    running = run().finally(() => {
      running = null;
    });
    return running;
  };
}

const PAUSE_MS = 1000;
const PAUSE_TIMES = 3;

/**
 * Make a function that has `work` run for as often as it is called, but at most once a second, and for a quarter of the
 * time: what is large is read less often.
 */
export function paced(work) {
  let busy = false;
  let again = false;
  const run = async () => {
    do {
      again = false;
      const since = performance.now();
      await work();
      const pause = Math.max(PAUSE_MS, PAUSE_TIMES * (performance.now() - since));
      await new Promise((resolve) => setTimeout(resolve, pause));
    } while (again);
    busy = false;
  };
  return () => {
    again = true;
    if (busy) return;
    busy = true;
    run();
  };
}

/** Something at a path. `load()` reads it; `value` is null until then. */
export class Resource {
  constructor(app, path, query = {}) {
    Object.assign(this, { app, path, query });
    this.value = null;
    this.problem = null;
    this.load = coalesced(() => this.#load());
  }

  async #load() {
    try {
      this.value = await this.read();
      this.problem = null;
    } catch (problem) {
      this.problem = problem;
    }
    this.app.redraw();
  }

  read() {
    return this.app.api.get(this.path, this.query);
  }
}

const PAGE = 50;
const LARGEST_PAGE = 1000;

/** A listing that comes in pages: `value` is {items, next}. */
export class Listing extends Resource {
  /** Read anew as much as is shown. */
  read() {
    const shown = this.value?.items.length ?? 0;
    return this.app.api.get(this.path, { ...this.query, limit: Math.min(Math.max(shown, PAGE), LARGEST_PAGE) });
  }

  async more() {
    try {
      const page = await this.app.api.get(this.path, { ...this.query, limit: PAGE, cursor: this.value.next });
      this.value = { items: [...this.value.items, ...page.items], next: page.next };
    } catch (problem) {
      this.app.report(problem);
    }
    this.app.redraw();
  }
}

/** Read a whole listing. */
export async function all(api, path) {
  const items = [];
  let cursor = null;
  do {
    const page = await api.get(path, { limit: LARGEST_PAGE, cursor });
    items.push(...page.items);
    cursor = page.next;
  } while (cursor);
  return items;
}
