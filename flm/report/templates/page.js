"use strict";
(() => {
  // light and dark: as the system has it until the button is pressed
  const root = document.documentElement, theme = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const label = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
  dark.addEventListener("change", label);
  label();
  addEventListener("beforeprint", () => { root.dataset.before = root.dataset.theme || ""; root.dataset.theme = "light"; });
  addEventListener("afterprint", () => {
    if (root.dataset.before) root.dataset.theme = root.dataset.before; else delete root.dataset.theme;
  });

  // tables: a click on a heading sorts, a second one turns the order round; empty cells stay last
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending", rows = [...body.rows];
        const key = (row) => row.cells[column].dataset.value;
        const numeric = rows.every((row) => key(row) === "" || !Number.isNaN(Number(key(row))));
        rows.sort((a, b) => {
          const x = key(a), y = key(b);
          if (x === "" || y === "") return (x === "") - (y === "");
          const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true });
          return down ? -order : order;
        });
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        body.append(...rows);
      });
    });
  }

  // films: one moment at a time under a slider; without a script, and on paper, all of them
  for (const film of document.querySelectorAll(".film")) {
    const moments = [...film.querySelectorAll(".moment")], slider = film.querySelector("input");
    if (moments.length < 2) continue;
    const said = film.querySelector("output"), play = film.querySelector(".play");
    let timer = 0;
    const show = () => {
      moments.forEach((moment, index) => moment.classList.toggle("now", index === slider.valueAsNumber));
      said.textContent = `${moments[slider.valueAsNumber].firstChild.textContent}, ${slider.valueAsNumber + 1} of ${moments.length}`;
    };
    const stop = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
    play.addEventListener("click", () => {
      if (timer) return stop();
      if (slider.valueAsNumber === moments.length - 1) slider.value = 0;
      show();
      play.textContent = "Stop";
      timer = setInterval(() => {
        if (slider.valueAsNumber === moments.length - 1) return stop();
        slider.stepUp();
        show();
      }, 500);
    });
    slider.addEventListener("input", () => { stop(); show(); });
    film.classList.add("live");
    film.querySelector(".controls").hidden = false;
    show();
  }
})();
