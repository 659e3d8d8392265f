// One page over the server's own routes: films of generation, one panel a model, and a scrubber over what was seen.
const $ = (id) => document.getElementById(id);
const state = { models: [], films: [], controllers: [], values: {}, seed: 0 };
const SECOND = "steps of the second";

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
root.dataset.theme = dark.matches ? "dark" : "light";
dark.addEventListener("change", (e) => { root.dataset.theme = e.matches ? "dark" : "light"; });
$("theme").addEventListener("click", () => { root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark"; });

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

async function getJson(path, options) {
  const answer = await fetch(path, options);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error?.message ?? answer.statusText);
  return body;
}

const post = (path, body) => getJson(path, { method: "POST", body: JSON.stringify(body) });

function slider({ name, min, max, step, value, log }) {
  const label = document.createElement("label");
  const shown = document.createElement("span");
  const input = document.createElement("input");
  shown.className = "number";
  Object.assign(input, { type: "range", id: `s-${name}`, min: log ? Math.log2(min) : min, max: log ? Math.log2(max) : max, step: log ? 1 : step });
  input.value = log ? Math.log2(value) : value;
  const read = () => {
    const number = log ? Math.round(2 ** Number(input.value)) : Number(input.value);
    state.values[name] = number;
    shown.textContent = String(number);
    input.setAttribute("aria-valuetext", String(number));
  };
  input.addEventListener("input", read);
  const head = document.createElement("span");
  head.append(name, " ", shown);
  label.append(head, input);
  $("sliders").append(label);
  read();
}

function panel(index, model) {
  const box = document.createElement("article");
  box.className = "panel";
  box.innerHTML = `<h2></h2><div class="view"><p class="tokens"></p></div>
    <label><span>Film <span class="number"></span></span><input type="range" min="0" max="0" value="0" disabled></label>
    <p class="number"><span class="facts"></span> <span class="verdict" role="status"></span></p>`;
  box.querySelector("h2").textContent = model.name;
  const film = { box, frames: [], model, scrub: box.querySelector("input"), seen: null };
  film.scrub.setAttribute("aria-label", `moments of ${model.name}`);
  film.scrub.addEventListener("input", () => { film.seen = Number(film.scrub.value); draw(film); });
  state.films[index] = film;
  $("panels").append(box);
}

function cellOf(tag, token, probability, given) {
  const cell = document.createElement(tag);
  cell.textContent = token;
  cell.title = given ? "given" : `probability ${probability.toFixed(2)}`;
  cell.style.setProperty("--p", probability.toFixed(3));
  cell.classList.toggle("given", given);
  return cell;
}

function fillGrid(table, { rows, columns, boxRows, boxColumns }, cellAt) {
  table.replaceChildren();
  for (let r = 0; r < rows; r++) {
    const line = table.insertRow();
    for (let c = 0; c < columns; c++) {
      const cell = cellAt(r * columns + c);
      cell.classList.toggle("box-right", (c + 1) % boxColumns === 0 && c + 1 < columns);
      cell.classList.toggle("box-below", (r + 1) % boxRows === 0 && r + 1 < rows);
      line.append(cell);
    }
  }
}

const clues = () => [...document.querySelectorAll("#board input")];

function board(grid, cells = []) {
  fillGrid($("board"), grid, (i) => {
    const cell = document.createElement("td");
    const input = document.createElement("input");
    Object.assign(input, { maxLength: 1, value: cells[i] ?? "", autocomplete: "off" });
    input.setAttribute("aria-label", `row ${Math.floor(i / grid.columns) + 1}, column ${(i % grid.columns) + 1}`);
    input.addEventListener("focus", () => input.select());
    input.addEventListener("input", () => { if (!grid.symbols.includes(input.value)) input.value = ""; });
    input.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid.columns, ArrowDown: grid.columns }[e.key];
      if (step === undefined) return;
      e.preventDefault();
      clues()[i + step]?.focus();
    });
    cell.append(input);
    return cell;
  });
}

const templateNow = () => (state.films[0].model.grid ? clues().map((c) => c.value || "[1]").join("") : $("template").value);

function draw(film) {
  const index = film.seen ?? film.frames.length - 1;
  const frame = film.frames[index];
  if (!frame) return;
  const view = film.box.querySelector(".view");
  if (film.model.grid) {
    const table = document.createElement("table");
    table.className = "grid";
    fillGrid(table, film.model.grid, (i) => cellOf("td", frame.tokens[i], frame.probability[i], frame.given[i]));
    view.replaceChildren(table);
  } else {
    const text = document.createElement("p");
    text.className = "tokens";
    frame.tokens.forEach((token, i) => {
      const shown = token === "" ? "·" : token.replaceAll("\n", "↵\n");
      const cell = cellOf("span", shown, frame.probability[i], frame.given[i]);
      cell.classList.toggle("space", token === "");
      text.append(cell);
    });
    view.replaceChildren(text);
  }
  film.scrub.max = String(Math.max(0, film.frames.length - 1));
  film.scrub.value = String(index);
  film.scrub.disabled = film.frames.length < 2;
  film.box.querySelector("label .number").textContent = `moment ${index + 1} of ${film.frames.length}, tau ${frame.tau.toFixed(2)}`;
}

async function judge(film) {
  const verdict = film.box.querySelector(".verdict");
  const answer = film.frames.at(-1).tokens.join("");
  const { solved } = await post("check", { model: film.model.index, givens: clues().map((c) => c.value || ".").join(""), answer });
  verdict.textContent = solved ? "✓ solved" : "✗ not solved";
  verdict.className = `verdict ${solved ? "right" : "wrong"}`;
}

async function generate(film, index, body) {
  const controller = new AbortController();
  state.controllers[index] = controller;
  film.frames = [];
  film.seen = null;
  film.box.querySelector(".verdict").textContent = "";
  film.box.querySelector("h2").textContent = `${film.model.name}, ${body.steps} step${body.steps === 1 ? "" : "s"}`;
  const begun = performance.now();
  const answer = await fetch(`m/${film.model.index}/v1/infill`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal: controller.signal,
  });
  if (!answer.ok) throw new Error(`${film.model.name}: ${(await answer.json()).error.message}`);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") continue;
      const content = JSON.parse(data);
      if (content.error) throw new Error(`${film.model.name}: ${content.error.message}`);
      if (content.flm) { film.frames.push(content.flm); draw(film); }
    }
  }
  const seconds = (performance.now() - begun) / 1000;
  film.box.querySelector(".facts").textContent =
    `${film.frames.length} evaluation${film.frames.length === 1 ? "" : "s"}, ${seconds.toFixed(2)} s`;
  if (film.model.grid) await judge(film);
}

async function run() {
  stop();
  if (!$("same").checked) state.seed += 1;
  say("Generating…");
  $("go").disabled = true;
  $("stop").disabled = false;
  const jobs = state.films.map((film, index) => {
    const options = {};
    for (const name of ["churn", "gamma"]) {
      if (film.model.options.includes(name) && state.values[name] > 0) options[name] = state.values[name];
    }
    const body = { template: templateNow(), stream: true, seed: state.seed, options };
    body.steps = index === 0 ? state.values.steps : state.values[SECOND];
    if (film.model.options.includes("temperature") && state.values.temperature !== 1) body.temperature = state.values.temperature;
    return generate(film, index, body);
  });
  const ended = await Promise.allSettled(jobs);
  const failed = ended.find((one) => one.status === "rejected" && one.reason.name !== "AbortError");
  say(failed ? failed.reason.message : "Done. Drag the film, or press ← and → on it.", Boolean(failed));
  $("go").disabled = false;
  $("stop").disabled = true;
}

function stop() {
  state.controllers.forEach((controller) => controller?.abort());
  state.controllers = [];
}

async function makeHole() {
  const field = $("template");
  const [start, end] = [field.selectionStart, field.selectionEnd];
  if (start === end) return say("Select the words that are to become a hole.", true);
  const { tokens } = await post("count", { model: state.films[0].model.index, text: field.value.slice(start, end) });
  field.setRangeText(`[${Math.max(1, tokens)}]`, start, end, "end");
  field.focus();
}

async function newPuzzle() {
  const { index, grid } = state.films[0].model;
  const { cells } = await post("puzzle", { model: index, seed: Math.floor(Math.random() * 1e9) });
  board(grid, cells);
}

function option(value, text) {
  const found = document.createElement("option");
  Object.assign(found, { value, textContent: text });
  return found;
}

// what may stand beside a model: those that fill the same kind of canvas; itself too, at another number of steps
function chooseFirst() {
  const first = state.models[$("first").value];
  const alike = state.models.filter((m) => Boolean(m.grid) === Boolean(first.grid) && m.length === first.length);
  $("second").replaceChildren(...alike.map((m) => option(m.index, m === first ? `${m.name}, at other steps` : m.name)), option("", "nothing"));
  $("second").value = (alike.find((m) => m !== first) ?? first).index;
  $("writing").hidden = Boolean(first.grid);
  $("solving").hidden = !first.grid;
  if (first.grid) board(first.grid);
  else $("template").value = `[${first.length}]`;
  choose();
  if (first.grid) newPuzzle().catch((e) => say(e.message, true));
}

function choose() {
  stop();
  const chosen = [$("first").value, $("second").value].filter((v) => v !== "").map((v) => state.models[v]);
  const [first, second] = chosen;
  state.films = [];
  state.values = {};
  $("panels").replaceChildren();
  $("sliders").replaceChildren($("sliders").querySelector("legend"));
  $("about").textContent = [...new Set(chosen)].map((m) => `${m.name}: ${m.algorithm}, ${m.length} tokens`).join(" · ");
  slider({ name: "steps", min: 1, max: 256, value: first.steps, log: true });
  if (second) slider({ name: SECOND, min: 1, max: 256, value: second === first ? 1 : second.steps, log: true });
  const options = new Set(chosen.flatMap((m) => m.options));
  if (options.has("temperature")) slider({ name: "temperature", min: 0, max: 1.5, step: 0.05, value: 1 });
  if (options.has("churn")) slider({ name: "churn", min: 0, max: 1, step: 0.05, value: 0 });
  if (options.has("gamma")) slider({ name: "gamma", min: 0, max: 1, step: 0.05, value: 0 });
  chosen.forEach((model, place) => panel(place, model));
}

$("ask").addEventListener("submit", (e) => { e.preventDefault(); run(); });
$("stop").addEventListener("click", stop);
$("hole").addEventListener("click", () => makeHole().catch((e) => say(e.message, true)));
$("puzzle").addEventListener("click", () => newPuzzle().catch((e) => say(e.message, true)));
$("blank").addEventListener("click", () => { $("template").value = `[${state.films[0].model.length}]`; });
$("empty").addEventListener("click", () => board(state.films[0].model.grid));
$("first").addEventListener("change", chooseFirst);
$("second").addEventListener("change", choose);
document.addEventListener("keydown", (e) => {
  if (e.key === "Escape") stop();
  if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) { e.preventDefault(); $("ask").requestSubmit(); }
  if (e.altKey && e.key.toLowerCase() === "h") { e.preventDefault(); makeHole().catch((error) => say(error.message, true)); }
});

getJson("models").then((found) => {
  state.models = found.models.map((model, index) => ({ ...model, index }));
  $("first").replaceChildren(...state.models.map((m) => option(m.index, m.name)));
  say("");
  chooseFirst();
  root.dataset.ready = "true";
}).catch((error) => say(error.message, true));
