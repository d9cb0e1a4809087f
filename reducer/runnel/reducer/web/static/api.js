// The HTTP interface: the token in the Authorization header and nowhere else, errors as problems.

const BASE = new URL("api/v1/", document.baseURI);
const KEPT = "runnel.token";

/** What went wrong, in the words of the reducer; `status` is 0 when it could not be reached. */
export class Problem extends Error {
  constructor({ status = 0, code = "", detail = "", hint = "" }) {
    super(detail);
    Object.assign(this, { status, code, hint });
  }
}

const NOT_REACHED = { code: "unreachable", detail: "The reducer does not answer.", hint: "It is asked again by itself." };

export class Api {
  /** @param {{refused: (problem: Problem) => void}} options `refused` is told when a token is wanted, or another one. */
  constructor({ refused }) {
    this.refused = refused;
  }

  get hasToken() {
    return sessionStorage.getItem(KEPT) !== null;
  }

  /** Keep the token for this tab until it is closed; null forgets it. */
  keepToken(token) {
    if (token === null) sessionStorage.removeItem(KEPT);
    else sessionStorage.setItem(KEPT, token);
  }

  get(path, query) {
    return this.#json("GET", path, { query });
  }

  post(path, body) {
    // The same call sent twice has one effect.
    return this.#json("POST", path, { body: body ?? null, headers: { "Idempotency-Key": randomKey() } });
  }

  del(path) {
    return this.#json("DELETE", path, {});
  }

  /** Have the browser save what is at `path`. */
  async download(path, filename) {
    const answer = await this.ask("GET", path, {});
    const address = URL.createObjectURL(await answer.blob());
    const link = document.createElement("a");
    link.href = address;
    link.download = filename;
    link.click();
    // The browser has taken it over once it is back at its event loop; a minute is long enough for that.
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  }

  async #json(method, path, options) {
    return (await this.ask(method, path, options)).json();
  }

  /** Return the answer of success, or throw a Problem. */
  async ask(method, path, { query = {}, body, headers = {}, signal }) {
    const address = new URL(path, BASE);
    for (const [name, value] of Object.entries(query)) {
      if (value !== null && value !== undefined) address.searchParams.set(name, value);
    }
    const token = sessionStorage.getItem(KEPT);
    const all = { Accept: "application/json", ...headers };
    if (token !== null) all.Authorization = `Bearer ${token}`;
    if (body !== undefined && body !== null) all["Content-Type"] = "application/json";
    const sent = body === undefined || body === null ? undefined : JSON.stringify(body);
    let answer;
    try {
      answer = await fetch(address, {
        method, headers: all, body: sent, signal, cache: "no-store", credentials: "omit", redirect: "error",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem(NOT_REACHED);
    }
    if (answer.ok) return answer;
    const problem = await problemOf(answer);
    // Whoever signed in anew meanwhile is not signed out by the answer to an old question.
    if (problem.status === 401 && token === sessionStorage.getItem(KEPT)) this.refused(problem);
    throw problem;
  }
}

async function problemOf(answer) {
  try {
    return new Problem({ ...(await answer.json()), status: answer.status });
  } catch {
    // What stands between us and the reducer (a proxy) answers in its own words, which are not for people.
    return new Problem({ status: answer.status, detail: `The answer was ${answer.status} ${answer.statusText}.` });
  }
}

function randomKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
