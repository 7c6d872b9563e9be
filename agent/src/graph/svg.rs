//! The graph as a picture: one SVG file, which needs nothing from anywhere.

use super::escape::{markup, plain, shortened};
use super::place::{Group, LABEL, Line, Picture, Rect, View, edge_text, place};
use super::{Edge, Graph, Port, port, rank, short_count};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Above the picture: what it is, and what the lines mean.
const HEAD: f64 = 46.0;
/// The least width, so that the head fits.
const LEAST: f64 = 560.0;

/// Outcome, colour, dashes.
const LOOKS: [(&str, &str, &str); 4] = [
    ("allowed", "#2e7d32", ""),
    ("would-deny", "#b26a00", "6 3"),
    ("would-allow", "#1565c0", "6 3"),
    ("denied", "#c62828", "2 3"),
];

/// The whole file.
pub fn render(graph: &Graph) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    out.push_str(&picture(graph));
    out
}

/// The `svg` element. Its parts carry `data-` numbers of nodes and edges, for the page around it.
pub(super) fn picture(graph: &Graph) -> String {
    let p = place(graph);
    let (width, height) = (p.width.max(LEAST), p.height + HEAD);
    let view = match p.view {
        View::Edges => "edges",
        View::Bundles => "bundles",
    };
    let mut out = String::new();
    put(
        &mut out,
        format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" data-view=\"{view}\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
             height=\"{height:.0}\" font-family=\"DejaVu Sans, Verdana, Helvetica, Arial, sans-serif\" font-size=\"11\">"
        ),
    );
    put(&mut out, format_args!("<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>"));
    head(&mut out, graph);
    put(&mut out, format_args!("<g transform=\"translate(0 {HEAD})\">"));
    // The best news first, so that the worst lies on top. In the large view, what is allowed passes behind the boxes.
    let mut lines: Vec<&Line> = p.lines.iter().collect();
    lines.sort_by_key(|l| l.edges.first().map_or(0, |e| rank(&graph.edges[*e].outcome)));
    let is_behind =
        |l: &&&Line| p.view == View::Bundles && l.edges.first().is_some_and(|e| graph.edges[*e].outcome == "allowed");
    for l in lines.iter().filter(is_behind) {
        course(&mut out, graph, &p, l);
        label(&mut out, graph, &p, l);
    }
    for g in &p.groups {
        let Rect { w, h, .. } = g.rect;
        put(
            &mut out,
            format_args!(
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" rx=\"8\" fill=\"#f4f6f8\" \
                 stroke=\"#b0bec5\"><title>{}</title></rect>",
                left(g.rect),
                top(g.rect),
                markup(&g.title)
            ),
        );
    }
    for l in lines.iter().filter(|l| !is_behind(l)) {
        course(&mut out, graph, &p, l);
    }
    for g in &p.groups {
        words(&mut out, graph, g);
    }
    let worst = worst(graph);
    for (i, r) in p.nodes.iter().enumerate() {
        node(&mut out, graph, i, *r, worst.get(&i).copied());
    }
    for l in lines.iter().filter(|l| !is_behind(l)) {
        label(&mut out, graph, &p, l);
    }
    out.push_str("</g>\n</svg>\n");
    out
}

fn head(out: &mut String, graph: &Graph) {
    put(
        out,
        format_args!("<text x=\"14\" y=\"18\" font-size=\"12\" fill=\"#37474f\">{}</text>", markup(&graph.summary())),
    );
    out.push_str("<defs>");
    for (word, colour, _) in LOOKS {
        put(
            out,
            format_args!(
                "<marker id=\"end-{word}\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" \
                 markerHeight=\"7\" markerUnits=\"userSpaceOnUse\" orient=\"auto\">\
                 <path d=\"M0 0 L8 4 L0 8 z\" fill=\"{colour}\"/></marker>"
            ),
        );
    }
    out.push_str("</defs>\n");
    let mut x = 14.0;
    for (word, colour, dashes) in LOOKS {
        put(
            out,
            format_args!(
                "<path d=\"M{x:.0} 34 h30\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\" \
                 marker-end=\"url(#end-{word})\"/><text x=\"{:.0}\" y=\"38\" fill=\"#37474f\">{word}</text>",
                x + 36.0
            ),
        );
        x += 124.0;
    }
}

/// What stands in a box beside its nodes. The halo keeps it readable where a line passes.
fn words(out: &mut String, graph: &Graph, g: &Group) {
    const HALO: &str = "stroke=\"#f4f6f8\" stroke-width=\"3\" paint-order=\"stroke\"";
    let (x, y) = (left(g.rect), top(g.rect));
    let title = markup(&shortened(&g.title, LABEL));
    put(
        out,
        format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" font-weight=\"bold\" fill=\"#455a64\" {HALO}>{title}</text>",
            x + 9.0,
            y + 17.0
        ),
    );
    if g.inside > 0 {
        put(
            out,
            format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"9\" fill=\"#607d8b\" {HALO}>{} inside</text>",
                x + g.rect.w - 8.0,
                y + 16.0,
                g.inside
            ),
        );
    }
    for (n, (text, edges)) in g.notes.iter().rev().enumerate() {
        let worst = edges.iter().map(|e| look(&graph.edges[*e].outcome)).max_by_key(|(word, ..)| rank(word));
        let colour = worst.filter(|(word, ..)| *word != "allowed").map_or("#607d8b", |(_, colour, _)| colour);
        put(
            out,
            format_args!(
                "<text class=\"note\" data-edges=\"{}\" x=\"{:.1}\" y=\"{:.1}\" font-size=\"9\" \
                 fill=\"{colour}\" {HALO}>{}</text>",
                numbers(edges),
                x + 9.0,
                y + g.rect.h - 7.0 - 14.0 * f64::from(u32::try_from(n).unwrap_or_default()),
                markup(text)
            ),
        );
    }
}

/// The worst that happened to each node's edges.
fn worst(graph: &Graph) -> BTreeMap<usize, &'static str> {
    let mut worst: BTreeMap<usize, &str> = BTreeMap::new();
    for e in &graph.edges {
        for end in [e.source, e.destination] {
            let now = look(&e.outcome).0;
            let before = worst.entry(end).or_insert(now);
            if rank(now) > rank(before) {
                *before = now;
            }
        }
    }
    worst
}

fn node(out: &mut String, graph: &Graph, i: usize, r: Rect, worst: Option<&str>) {
    let n = &graph.nodes[i];
    let (radius, fill) = if n.is_workload { (5.0, "#ffffff") } else { (r.h / 2.0, "#eceff1") };
    let (stroke, width) = match worst {
        Some("allowed") | None => ("#78909c", 1.0),
        Some(word) => (look(word).1, 1.8),
    };
    let title = if n.namespace.is_empty() { n.id.clone() } else { format!("{} in {}", n.id, n.namespace) };
    put(
        out,
        format_args!(
            "<g class=\"node\" data-node=\"{i}\"><title>{}</title><rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" \
             height=\"{:.1}\" rx=\"{radius:.1}\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"{width}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#212121\">{}</text></g>",
            markup(&title),
            left(r),
            top(r),
            r.w,
            r.h,
            r.x,
            r.y + 4.0,
            markup(&shortened(&n.label, LABEL))
        ),
    );
}

fn course(out: &mut String, graph: &Graph, p: &Picture, l: &Line) {
    let Some(first) = l.edges.first().map(|e| &graph.edges[*e]) else { return };
    let (word, colour, dashes) = look(&first.outcome);
    let width = match p.view {
        View::Edges => 1.4,
        View::Bundles => 1.0 + f64::from(u32::try_from(l.edges.len()).unwrap_or(u32::MAX)).ln().max(0.0),
    };
    let opacity = if p.view == View::Bundles && word == "allowed" { 0.45 } else { 0.85 };
    let title = match p.view {
        View::Edges => {
            let addresses = first.addresses_in_short(6).into_iter().map(|a| format!("\n{}", plain(&a)));
            told(graph, first) + &addresses.collect::<String>()
        }
        View::Bundles => {
            let all: Vec<String> = l.edges.iter().take(12).map(|e| told(graph, &graph.edges[*e])).collect();
            let more = l.edges.len().saturating_sub(12);
            let more = if more > 0 { format!("\nand {more} more") } else { String::new() };
            format!("{} {word}\n{}{more}", l.edges.len(), all.join("\n"))
        }
    };
    // Line by line: a newline of ours isn't one of a stranger's.
    let title: Vec<String> = title.split('\n').map(markup).collect();
    put(
        out,
        format_args!(
            "<path class=\"edge\" data-edges=\"{}\" d=\"{}\" fill=\"none\" stroke=\"{colour}\" \
             stroke-width=\"{width:.1}\" stroke-dasharray=\"{dashes}\" stroke-opacity=\"{opacity}\" \
             marker-end=\"url(#end-{word})\"><title>{}</title></path>",
            numbers(&l.edges),
            path(&l.points),
            title.join("\n")
        ),
    );
}

fn label(out: &mut String, graph: &Graph, p: &Picture, l: &Line) {
    let Some(first) = l.edges.first() else { return };
    let text = match p.view {
        View::Edges => edge_text(graph, *first),
        View::Bundles if l.edges.len() > 1 => l.edges.len().to_string(),
        View::Bundles => return,
    };
    let colour = look(&graph.edges[*first].outcome).1;
    let halo = if p.view == View::Edges { 4 } else { 3 };
    put(
        out,
        format_args!(
            "<text class=\"note\" data-edges=\"{}\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"9\" \
             fill=\"{colour}\" stroke=\"#ffffff\" stroke-width=\"{halo}\" paint-order=\"stroke\">{}</text>",
            numbers(&l.edges),
            l.label.0,
            l.label.1 + 3.0,
            markup(&text)
        ),
    );
}

/// An edge in words.
fn told(graph: &Graph, e: &Edge) -> String {
    let name = |i: usize| plain(&graph.nodes[i].id);
    let ports: Vec<String> = e.ports.iter().take(8).map(said).collect();
    let more = e.ports.len().saturating_sub(8);
    let more = if more > 0 { format!(" and {more} more ports") } else { String::new() };
    format!("{} → {}: {} ({}{more})", name(e.source), name(e.destination), e.outcome, ports.join("; "))
}

fn said(p: &Port) -> String {
    let reasons: Vec<&str> = p.reasons.iter().map(String::as_str).collect();
    format!("{} ×{}, {}", port(p.protocol, p.port), short_count(p.counts.attempts), reasons.join(", "))
}

/// An outcome that isn't known looks as the worst.
fn look(outcome: &str) -> (&'static str, &'static str, &'static str) {
    let [.., denied] = LOOKS;
    LOOKS.into_iter().find(|(word, ..)| *word == outcome).unwrap_or(denied)
}

fn numbers(edges: &[usize]) -> String {
    edges.iter().map(usize::to_string).collect::<Vec<_>>().join(" ")
}

/// A smooth course through the points: from middle to middle, with the points as the curves' handles.
fn path(points: &[(f64, f64)]) -> String {
    let Some(((x, y), rest)) = points.split_first() else { return String::new() };
    let mut d = format!("M{x:.1} {y:.1}");
    let Some((last, middle)) = rest.split_last() else { return d };
    for (i, (x, y)) in middle.iter().enumerate() {
        let next = middle.get(i + 1).unwrap_or(last);
        let to = if i + 1 == middle.len() { *last } else { (f64::midpoint(*x, next.0), f64::midpoint(*y, next.1)) };
        d.push_str(&format!(" Q{x:.1} {y:.1} {:.1} {:.1}", to.0, to.1));
    }
    if middle.is_empty() {
        d.push_str(&format!(" L{:.1} {:.1}", last.0, last.1));
    }
    d
}

fn left(r: Rect) -> f64 {
    r.x - r.w / 2.0
}

fn top(r: Rect) -> f64 {
    r.y - r.h / 2.0
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing into a String doesn't fail.
    writeln!(out, "{text}").unwrap_or_default();
}
