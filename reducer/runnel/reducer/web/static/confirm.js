// A question that has to be answered before something goes on.

import { h, render } from "./dom.js";

/**
 * Ask; resolve to whether the answer was yes. Escape is a no, and the no has the focus.
 *
 * @param {{title: string, text: string, yes: string}} question
 */
export function confirm({ title, text, yes }) {
  const dialog = document.createElement("dialog");
  document.body.append(dialog);
  dialog.setAttribute("aria-labelledby", "question");
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    render(
      dialog,
      h("h2", { id: "question" }, title),
      h("p", null, text),
      h(
        "div",
        { class: "buttons" },
        h("button", { type: "button", autofocus: true, onclick: () => dialog.close("no") }, "Cancel"),
        h("button", { type: "button", class: "danger", onclick: () => dialog.close("yes") }, yes),
      ),
    );
    dialog.showModal();
  });
}
