"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light theme" : "Dark theme"; };
  button.hidden = false;
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();

  // groups: arrow keys move inside a map, which is one stop of the tab key
  for (const map of document.querySelectorAll(".map")) {
    const tiles = [...map.querySelectorAll("a")];
    const columns = () => getComputedStyle(map).gridTemplateColumns.split(" ").length;
    tiles.forEach((tile, place) => { tile.tabIndex = place === 0 ? 0 : -1; });
    map.addEventListener("keydown", (event) => {
      const here = tiles.indexOf(document.activeElement);
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns(), Home: -here, End: tiles.length - 1 - here }[event.key];
      const next = tiles[here + step];
      if (step === undefined || here < 0) return;
      event.preventDefault();
      if (!next) return;
      tiles[here].tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }
  const show = () => {
    for (const tile of document.querySelectorAll(".map a[aria-current]")) {
      tile.removeAttribute("aria-current");
      if (location.hash.endsWith("-groups")) tile.focus({ preventScroll: true });  // its panel was closed
    }
    const tile = location.hash.length > 1 && document.querySelector(`.map a[href="${CSS.escape(location.hash).replace("\\#", "#")}"]`);
    if (tile) tile.setAttribute("aria-current", "true");
  };
  addEventListener("hashchange", show);
  show();
  // what scrolls sideways must be reachable by keyboard, and nothing else should be a stop
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  for (const one of document.querySelectorAll(".scroll")) sizes.observe(one);
  // a closed <details> does not print: open all of them for the printer, and close those again
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.print:not([open])")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
})();
