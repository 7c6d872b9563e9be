//! Where things stand in the picture. The layout itself is dagre's; here it is told what there is.
//!
//! Two views. A small graph shows each edge with its ports ([`View::Edges`]). In a large one that would be a ball of
//! wool, so there is an [`overview`].

mod overview;

use super::{Graph, escape};
use dagre::graph::{Graph as Dagre, GraphOptions};
use dagre::layout::types::LabelPos;
use dagre::{EdgeLabel, LayoutOptions, NodeLabel, RankDir, layout};

/// Up to so many nodes and edges, each edge is shown by itself.
const NODES: usize = 45;
const EDGES: usize = 90;
/// The longest label of a node, characters.
pub const LABEL: usize = 26;
/// How wide a character is at most, on average, at the size that labels have.
const CHARACTER: f64 = 6.6;
const NODE_HEIGHT: f64 = 26.0;
const HEADER: f64 = 26.0;

/// How edges are shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    /// One by one.
    Edges,
    /// One for each two boxes and outcome.
    Bundles,
}

/// A rectangle; x and y are its middle.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Rect {
    /// The middle.
    pub x: f64,
    /// The middle.
    pub y: f64,
    /// The width.
    pub w: f64,
    /// The height.
    pub h: f64,
}

/// A box around nodes.
#[derive(Clone, PartialEq, Debug)]
pub struct Group {
    /// What stands in its upper left corner.
    pub title: String,
    /// Where it is.
    pub rect: Rect,
    /// Edges between its nodes that aren't drawn.
    pub inside: usize,
    /// What goes to and from those that nearly all talk to: a text, and the edges that it stands for.
    pub notes: Vec<(String, Vec<usize>)>,
}

/// A line from one thing to another.
#[derive(Clone, PartialEq, Debug)]
pub struct Line {
    /// The edges that it stands for: indexes into the graph's.
    pub edges: Vec<usize>,
    /// Its course.
    pub points: Vec<(f64, f64)>,
    /// Where its label's middle is.
    pub label: (f64, f64),
}

/// The picture.
#[derive(Clone, PartialEq, Debug)]
pub struct Picture {
    /// How edges are shown.
    pub view: View,
    /// Its width.
    pub width: f64,
    /// Its height.
    pub height: f64,
    /// The boxes.
    pub groups: Vec<Group>,
    /// Where each node is, by its index.
    pub nodes: Vec<Rect>,
    /// The lines.
    pub lines: Vec<Line>,
}

/// Places everything.
pub fn place(graph: &Graph) -> Picture {
    if graph.nodes.len() <= NODES && graph.edges.len() <= EDGES { edges(graph) } else { overview::place(graph) }
}

/// How wide a text is drawn at most. Characters beyond Latin may be twice as wide.
fn width_of(text: &str) -> f64 {
    text.chars().map(|c| if c < '\u{1100}' { CHARACTER } else { 2.0 * CHARACTER }).sum()
}

fn count(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::MAX, f64::from)
}

fn node_width(label: &str) -> f64 {
    width_of(&escape::shortened(label, LABEL)) + 20.0
}

type Drawing = Dagre<NodeLabel, EdgeLabel>;

fn edges(graph: &Graph) -> Picture {
    let mut d: Drawing = Dagre::with_options(GraphOptions { directed: true, multigraph: true, compound: true });
    for (i, node) in graph.nodes.iter().enumerate() {
        let label = NodeLabel { width: node_width(&node.label), height: NODE_HEIGHT, ..NodeLabel::default() };
        d.set_node(format!("n{i}"), Some(label));
    }
    let boxed: Vec<(&str, Vec<usize>)> = graph.namespaces().into_iter().filter(|(n, _)| !n.is_empty()).collect();
    for (g, (_, nodes)) in boxed.iter().enumerate() {
        d.set_node(format!("g{g}"), Some(NodeLabel::default()));
        for i in nodes {
            d.set_parent(&format!("n{i}"), Some(&format!("g{g}")));
        }
    }
    for (i, e) in graph.edges.iter().enumerate() {
        let width = width_of(&edge_text(graph, i)) * 0.85;
        let label = EdgeLabel { width, height: 14.0, labelpos: LabelPos::Center, ..EdgeLabel::default() };
        d.set_edge(format!("n{}", e.source), format!("n{}", e.destination), Some(label), Some(&i.to_string()));
    }
    let options = LayoutOptions {
        rankdir: RankDir::LR,
        nodesep: 22.0,
        edgesep: 14.0,
        ranksep: 36.0,
        marginx: 16.0,
        marginy: 24.0,
        ..LayoutOptions::default()
    };
    layout(&mut d, Some(options));
    let nodes: Vec<Rect> = (0..graph.nodes.len()).map(|i| rect(&d, &format!("n{i}"))).collect();
    let groups = boxed
        .iter()
        .enumerate()
        .map(|(g, (namespace, nodes_of))| {
            // Around its nodes, with room for the title.
            let mut r = rect(&d, &format!("g{g}"));
            let top = nodes_of.iter().map(|i| nodes[*i].y - nodes[*i].h / 2.0).fold(f64::MAX, f64::min);
            let (left, right) = (r.x - r.w / 2.0, r.x + r.w / 2.0);
            let bottom = r.y + r.h / 2.0;
            let top = (top - HEADER).min(r.y - r.h / 2.0);
            let right = right.max(left + width_of(&escape::shortened(namespace, LABEL)) + 24.0);
            r = Rect { x: f64::midpoint(left, right), y: f64::midpoint(top, bottom), w: right - left, h: bottom - top };
            Group { title: (*namespace).to_owned(), rect: r, inside: 0, notes: Vec::new() }
        })
        .collect();
    let lines = graph.edges.iter().enumerate().filter_map(|(i, e)| {
        let label = d.edge(&format!("n{}", e.source), &format!("n{}", e.destination), Some(&i.to_string()))?;
        line(vec![i], label)
    });
    let lines = lines.collect();
    framed(Picture { view: View::Edges, width: 0.0, height: 0.0, groups, nodes, lines })
}

/// What stands beside an edge that is drawn by itself.
pub fn edge_text(graph: &Graph, edge: usize) -> String {
    let e = &graph.edges[edge];
    escape::shortened(&format!("{} ×{}", e.ports_in_short(2), super::short_count(e.counts.attempts)), 30)
}

fn rect(d: &Drawing, name: &str) -> Rect {
    let node = d.node(name);
    node.map_or_else(Rect::default, |n| Rect {
        x: n.x.unwrap_or_default(),
        y: n.y.unwrap_or_default(),
        w: n.width,
        h: n.height,
    })
}

fn line(edges: Vec<usize>, label: &EdgeLabel) -> Option<Line> {
    let points: Vec<(f64, f64)> = label.points.iter().map(|p| (p.x, p.y)).collect();
    let middle = *points.get(points.len() / 2)?;
    Some(Line { edges, points, label: label.x.zip(label.y).unwrap_or(middle) })
}

/// Moves everything so that it begins at (0, 0), and measures it.
fn framed(mut picture: Picture) -> Picture {
    const MARGIN: f64 = 14.0;
    let (mut left, mut top, mut right, mut bottom) = (f64::MAX, f64::MAX, f64::MIN, f64::MIN);
    let rects = picture.groups.iter().map(|g| g.rect).chain(picture.nodes.iter().copied());
    let points = picture.lines.iter().flat_map(|l| l.points.iter().map(|(x, y)| Rect { x: *x, y: *y, w: 0.0, h: 0.0 }));
    for r in rects.chain(points) {
        left = left.min(r.x - r.w / 2.0);
        right = right.max(r.x + r.w / 2.0);
        top = top.min(r.y - r.h / 2.0);
        bottom = bottom.max(r.y + r.h / 2.0);
    }
    if left > right {
        (left, right, top, bottom) = (0.0, 0.0, 0.0, 0.0);
    }
    let (dx, dy) = (MARGIN - left, MARGIN - top);
    for r in picture.groups.iter_mut().map(|g| &mut g.rect).chain(&mut picture.nodes) {
        r.x += dx;
        r.y += dy;
    }
    for l in &mut picture.lines {
        l.label = (l.label.0 + dx, l.label.1 + dy);
        for p in &mut l.points {
            *p = (p.0 + dx, p.1 + dy);
        }
    }
    picture.width = right - left + 2.0 * MARGIN;
    picture.height = bottom - top + 2.0 * MARGIN;
    picture
}
