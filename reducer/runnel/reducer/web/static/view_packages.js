import { h } from "./dom.js";
import { bytes, id, time } from "./format.js";
import { commandEnd, download, empty, more, pending, table } from "./parts.js";
import { Listing } from "./resources.js";

const COLUMNS = [
  { name: "Package" }, { name: "Version" }, { name: "Digest" }, { name: "Entry points", class: "wide" },
  { name: "Size", class: "number" }, { name: "Added", class: "wide" }, { name: "File" },
];

/** The compute packages, newest first. */
export class PackagesView {
  title = "Packages";

  constructor(app) {
    this.app = app;
    this.packages = new Listing(app, "packages");
  }

  start() {
    this.packages.load();
  }

  take(_event, stale) {
    if (stale.has("packages")) this.packages.load();
  }

  render() {
    const items = this.packages.value?.items;
    return h(
      "section",
      { class: "card" },
      h("h1", null, "Packages"),
      !items && pending(this.packages),
      items?.length === 0 &&
        empty(
          "No compute package yet. Its folder has a train.py and a validate.py:",
          "runnel package init my-package",
          "runnel package build my-package -o my-package.tar.gz",
          `runnel package push my-package.tar.gz${commandEnd(this.app.state)}`,
        ),
      items?.length > 0 && table("Packages", COLUMNS, items.map((each) => this.#row(each))),
      more(this.packages),
    );
  }

  #row(each) {
    const points = Object.keys(each.manifest.entry_points ?? {}).join(", ");
    const file = `${each.name || each.digest.slice(0, 12)}.tar.gz`;
    return h(
      "tr",
      { key: each.digest },
      h("th", { scope: "row" }, each.name),
      h("td", null, each.retired_at ? `${each.version} (retired)` : each.version),
      h("td", null, id(each.digest)),
      h("td", { class: "wide" }, points),
      h("td", { class: "number" }, bytes(each.size_bytes)),
      h("td", { class: "wide" }, time(each.created_at)),
      h("td", null, download(this.app, `packages/${each.digest}/content`, file)),
    );
  }
}
