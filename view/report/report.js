"use strict";
// All text goes into the page as textContent: what a model wrote is never read as HTML.
(() => {
  const PAGE = 20;
  const byId = (id) => document.getElementById(id);

  function element(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // -- light and dark

  const address = new URLSearchParams(location.hash.slice(1));

  function setTheme(theme) {
    if (theme) document.documentElement.dataset.theme = theme;
  }

  setTheme(address.get("theme"));
  byId("theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme
      ? document.documentElement.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    setTheme(dark ? "light" : "dark");
  });

  // -- charts

  // `ast` has expressions interpreted: the page's security policy forbids code made from strings.
  const options = { ast: true, actions: false, renderer: "svg", defaultStyle: false, tooltip: { disableDefaultStyle: true } };
  const drawn = new Map();

  // Draws what has changed; a chart that stays in its place and is the same is left alone.
  function drawCharts(specs) {
    return Promise.all(
      specs.map(async (spec) => {
        const text = JSON.stringify(spec);
        const before = drawn.get(spec.name);
        const place = byId(`chart-${spec.name}`);
        if (before && before.text === text && place.childElementCount) return;
        if (before) before.view.finalize();
        drawn.set(spec.name, { text, view: await window.vegaEmbed(place, spec, options) });
      }),
    );
  }

  // -- terms of the glossary, explained where they stand

  const bubble = byId("meaning");

  let term = null;

  function explain(event) {
    term = event.target.closest ? event.target.closest(".term") : null;
    put();
  }

  function put() {
    bubble.hidden = !term;
    if (!term) return;
    bubble.textContent = term.getAttribute("aria-description");
    const place = term.getBoundingClientRect();
    const below = place.bottom + 6 + bubble.offsetHeight < innerHeight;
    bubble.style.left = `${Math.max(8, Math.min(place.left, innerWidth - bubble.offsetWidth - 8))}px`;
    bubble.style.top = `${below ? place.bottom + 6 : Math.max(8, place.top - 6 - bubble.offsetHeight)}px`;
  }

  // A finger's tap is a mouseover and a focus, too.
  for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, explain);
  document.addEventListener("focusout", explain.bind(null, { target: document }));
  document.addEventListener("keydown", (event) => event.key === "Escape" && explain({ target: document }));
  // Focus may scroll a term into view.
  document.addEventListener("scroll", put, true);

  // -- trajectories

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return new Response(stream).json();
  }

  const controls = ["q", "round", "finish", "max", "sort", "desc"].map(byId);
  let all = [];
  let shown = [];
  let page = 0;

  function searchable(row) {
    if (row.haystack === undefined) {
      const text = row.text.map((part) => (Array.isArray(part) ? part[0] : "\n")).join("");
      const rollouts = row.chunks.flatMap((c) => c.rollouts.map((r) => (r.parts || []).map((p) => p[0]).join("")));
      row.haystack = [row.id, row.question, text, ...rollouts].join("\n").toLowerCase();
    }
    return row.haystack;
  }

  function filter() {
    page = 0;
    select();
    draw();
  }

  function select() {
    const [q, round, finish, max, sort, desc] = controls.map((c) => (c.type === "checkbox" ? c.checked : c.value));
    const wanted = q.toLowerCase();
    const sign = desc ? -1 : 1;
    shown = all.filter(
      (row) =>
        (round === "" || row.round === Number(round)) &&
        (finish === "" || row.finish === finish) &&
        (max === "" || (row.lowest !== null && row.lowest <= Number(max))) &&
        (wanted === "" || searchable(row).includes(wanted)),
    );
    // Without a figure: at the end, whichever way.
    shown.sort((a, b) => (a[sort] === null) - (b[sort] === null) || sign * (a[sort] - b[sort]));
  }

  function draw() {
    const pages = Math.max(Math.ceil(shown.length / PAGE), 1);
    byId("count").textContent = `${shown.length.toLocaleString("en")} of ${all.length.toLocaleString("en")} trajectories`;
    byId("page").textContent = `page ${page + 1} of ${pages}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
    byId("list").replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map(card));
    byId("pages").hidden = pages === 1;
  }

  const number = (value, digits) => (value === null ? "–" : value.toFixed(digits));

  function card(row) {
    const details = element("details", "trajectory");
    details.dataset.id = row.id;
    const summary = element("summary");
    summary.append(element("span", "text", row.question.replace(/\s+/g, " ")));
    summary.append(
      element(
        "span",
        "muted",
        `round ${row.round} · ${row.tokens} tokens · ${row.finish} · entropy ${number(row.entropy, 2)} · ` +
          `π̂ ${number(row.weight, 2)}, lowest ${number(row.lowest, 2)}`,
      ),
    );
    details.append(summary);
    details.addEventListener("toggle", () => {
      if (details.open && details.children.length === 1) details.append(body(row));
    });
    return details;
  }

  function body(row) {
    const box = element("div", "body");
    const repetition = row.repetition === null ? "" : ` · repetition ${(100 * row.repetition).toFixed(0)} %`;
    box.append(element("span", "muted facts", `${row.id} · sample ${row.sample}${repetition}`));
    box.append(element("h4", "", "Question"), element("div", "text", row.question));
    box.append(element("h4", "", "Response"), response(row));
    row.chunks.forEach((chunk, i) => box.append(fork(chunk, i + 1)));
    return box;
  }

  function response(row) {
    const box = element("div", "text");
    let last = -1;
    for (const part of row.text) {
      if (!Array.isArray(part)) {
        box.append(element("span", "elided", ` … ${part.toLocaleString("en")} characters … `));
        continue;
      }
      const [text, level, chunk] = part;
      if (chunk !== last && chunk >= 0) box.append(element("span", "number", chunk + 1));
      last = chunk;
      box.append(element("span", (level ? `heat h${level}` : "") + (chunk >= 0 ? " chunk" : ""), text));
    }
    return box;
  }

  function fork(chunk, place) {
    const box = element("article", "fork");
    const weight = chunk.weight === null ? (chunk.n === null ? "not scored" : "left out") : `π̂ ${number(chunk.weight, 3)}`;
    const interval = chunk.low === null ? "" : ` [${number(chunk.low, 2)}, ${number(chunk.high, 2)}]`;
    const facts = element("p", "facts");
    facts.append(element("b", "", chunk.whole ? "Answers of the teacher" : `Fork #${place}`));
    if (!chunk.whole) facts.append(` position ${chunk.anchor} · entropy ${number(chunk.entropy, 2)} nats, rank ${chunk.rank} · prior ${number(chunk.prior, 2)} · `);
    if (!chunk.whole) facts.append(element("b", "", weight + interval), chunk.n === null ? "" : ` from ${chunk.n} rollouts`);
    const list = element("ul");
    chunk.rollouts.forEach((rollout) => list.append(answer(rollout)));
    if (chunk.more) list.append(element("li", "muted", `… ${chunk.more} more`));
    box.append(facts, list);
    return box;
  }

  function answer(rollout) {
    const item = element("li");
    item.append(element("span", "times", `${rollout.times}×`));
    if (!rollout.parts) {
      item.append(element("span", "failed", rollout.status));
      return item;
    }
    const text = element("span", "text");
    rollout.parts.forEach(([piece, kind]) => text.append(element("span", kind, piece)));
    if (rollout.share !== null) item.append(element("span", "share", `${Math.round(100 * rollout.share)} %`));
    item.append(text);
    return item;
  }

  function turn(by) {
    page += by;
    draw();
  }

  // The choices are what there is; what was chosen stays chosen.
  function choices(control, values) {
    const present = new Set([...control.options].map((option) => option.value));
    for (const value of [...new Set(values)].sort((a, b) => (a > b) - (a < b))) {
      if (!present.has(String(value))) control.append(new Option(value));
    }
  }

  async function showTrajectories(data) {
    all = await unpack(data);
    choices(byId("round"), all.map((row) => row.round));
    choices(byId("finish"), all.map((row) => row.finish));
    const open = new Set([...document.querySelectorAll(".trajectory[open]")].map((node) => node.dataset.id));
    select();
    page = Math.min(page, Math.max(Math.ceil(shown.length / PAGE) - 1, 0));
    draw();
    document.querySelectorAll(".trajectory").forEach((node) => (node.open = open.has(node.dataset.id)));
  }

  // An address such as #q=bisector&round=2&open=1 shows the same to everybody.
  function followAddress() {
    for (const control of controls) {
      const value = address.get(control.id);
      if (value === null) continue;
      if (control.type === "checkbox") control.checked = value === "1";
      else control.value = value;
    }
    filter();
    if (address.get("open")) document.querySelectorAll(".trajectory").forEach((node, i) => (node.open = i < Number(address.get("open"))));
  }

  if (byId("filters")) {
    controls.forEach((control) => control.addEventListener("input", filter));
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("previous").addEventListener("click", () => turn(-1));
    byId("next").addEventListener("click", () => turn(1));
  }

  let followed = false;

  // Parts of a page: { specs, data }, whose markup is in its place already.
  async function fill(part) {
    await drawCharts(part.specs);
    if (!part.data) return;
    await showTrajectories(part.data);
    if (!followed) followAddress();
    followed = true;
  }

  function ready(filled) {
    return filled.then(
      () => (document.documentElement.dataset.ready = "yes"),
      (error) => {
        document.documentElement.dataset.ready = "failed";
        console.error(error);
      },
    );
  }

  if (document.documentElement.dataset.live) window.omniopd = { fill, ready };
  else ready(fill({ specs: JSON.parse(byId("specs").textContent), data: byId("trajectories").textContent }));
})();
