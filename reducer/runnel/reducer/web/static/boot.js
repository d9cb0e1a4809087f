// Where a module of the page does not come, as when the machine changes its network in that moment, the browser runs
// none of them, and the page would say for ever that it asks: then all of it is asked for again.
addEventListener(
  "error",
  (event) => {
    if (event.target instanceof HTMLScriptElement) setTimeout(() => location.reload(), 1000);
  },
  true,
);
