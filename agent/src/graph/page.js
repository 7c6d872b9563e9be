"use strict";
// Search and pointing. Names are only ever compared and set as text, never as markup.
const { nodes, edges } = JSON.parse(document.getElementById("data").textContent);
const svg = document.querySelector("#picture svg");
const layer = svg.querySelector("g[transform]");
const nodeOf = [...svg.querySelectorAll("[data-node]")];
const lines = [...svg.querySelectorAll("[data-edges]")];
const rows = [...document.querySelectorAll("tr[data-edge]")];
const search = document.getElementById("search");
const found = document.getElementById("found");
const colours = { "allowed": "#2e7d32", "would-deny": "#b26a00", "would-allow": "#1565c0" };
let fixed = null;

function middle(i) {
  const box = nodeOf[i].querySelector("rect");
  const at = (name) => Number(box.getAttribute(name));
  return [at("x") + at("width") / 2, at("y") + at("height") / 2, at("width") / 2, at("height") / 2];
}

// Where the line between two middles leaves the first one's box.
function border([x, y, w, h], [tx, ty]) {
  const dx = tx - x, dy = ty - y;
  const part = Math.min(dx ? w / Math.abs(dx) : Infinity, dy ? h / Math.abs(dy) : Infinity, 1);
  return [x + dx * part, y + dy * part];
}

function clear() {
  svg.classList.remove("picked");
  svg.querySelectorAll(".own").forEach((e) => e.remove());
  svg.querySelectorAll(".lit, .chosen").forEach((e) => e.classList.remove("lit", "chosen"));
}

// Shows these edges and their ends. Where the picture has only bundles, each edge gets a line of its own.
function show(picked, chosen) {
  clear();
  svg.classList.add("picked");
  const all = new Set(picked);
  for (const i of chosen) nodeOf[i].classList.add("lit", "chosen");
  for (const e of picked) for (const end of edges[e].slice(0, 2)) nodeOf[end].classList.add("lit");
  const alone = new Set();
  for (const line of svg.dataset.view === "edges" ? lines : []) {
    const own = line.dataset.edges.split(" ").map(Number);
    if (own.length === 1 && all.has(own[0])) { line.classList.add("lit"); alone.add(own[0]); }
  }
  for (const e of picked) {
    const [from, to, outcome] = edges[e];
    if (alone.has(e) || from === to) continue;
    const a = middle(from), b = middle(to);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const [[x1, y1], [x2, y2]] = [border(a, b), border(b, a)];
    for (const [name, value] of Object.entries({ x1, y1, x2, y2 })) line.setAttribute(name, value);
    line.setAttribute("class", "own");
    line.setAttribute("stroke", colours[outcome] || "#c62828");
    line.setAttribute("stroke-width", "1.5");
    line.setAttribute("marker-end", `url(#end-${outcome in colours ? outcome : "denied"})`);
    layer.append(line);
  }
}

function pick(i) {
  show(edges.flatMap(([from, to], e) => (from === i || to === i ? [e] : [])), [i]);
}

function look() {
  const text = search.value.trim().toLowerCase();
  const hits = rows.filter((row) => {
    const hit = !text || row.textContent.toLowerCase().includes(text);
    row.hidden = !hit;
    return hit;
  });
  found.textContent = text ? `${hits.length} of ${rows.length} edges` : "";
  if (!text) { clear(); return; }
  const named = nodes.flatMap((name, i) => (name.toLowerCase().includes(text) ? [i] : []));
  show(hits.map((row) => Number(row.dataset.edge)), named);
}

nodeOf.forEach((node, i) => {
  node.addEventListener("mouseenter", () => { if (fixed === null && !search.value) pick(i); });
  node.addEventListener("mouseleave", () => { if (fixed === null && !search.value) clear(); });
  node.addEventListener("click", (event) => {
    event.stopPropagation();
    fixed = fixed === i ? null : i;
    if (fixed === null) clear(); else pick(i);
  });
});
svg.addEventListener("click", () => { fixed = null; look(); });
search.addEventListener("input", () => { fixed = null; look(); });
// A link may carry a search: graph.html#payments
search.value = decodeURIComponent(location.hash.slice(1));
if (search.value) look();
