//! The view of a large graph: each namespace is a box with its identities in columns, what goes from box to box is one
//! line for each outcome, and boxes that have much to do with each other stand near each other.
//!
//! What nearly every box talks to (DNS, the monitoring, the world) would lay a line over everything and tell nothing:
//! it is a note in each box instead. The page lets each identity show its own edges.

use super::{Graph, Group, Line, NODE_HEIGHT, Picture, Rect, View, count, framed, node_width, width_of};
use crate::graph::{escape, rank};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

const CELL_HEIGHT: f64 = 22.0;
const GAP: f64 = 6.0;
const HEADER: f64 = 26.0;
const NOTE_HEIGHT: f64 = 14.0;
/// How many notes a box has at most; what is beyond is in the last one.
const NOTES: usize = 6;
/// Between two columns of boxes, and between two boxes of a column.
const ASIDE: f64 = 84.0;
const BELOW: f64 = 40.0;
/// A box that has to do with so much of all others, in percent, is told in notes.
const HUB: usize = 50;

/// What one box holds.
struct Cluster<'a> {
    title: &'a str,
    nodes: Vec<usize>,
    boxed: bool,
    columns: usize,
    cell: f64,
    notes: Vec<Note>,
    inside: usize,
}

impl Cluster<'_> {
    fn size(&self) -> (f64, f64) {
        if !self.boxed {
            return (self.cell, NODE_HEIGHT);
        }
        let rows = self.nodes.len().div_ceil(self.columns);
        let width = count(self.columns) * (self.cell + GAP) + GAP;
        let title = width_of(&escape::shortened(self.title, super::LABEL)) * 1.15 + 70.0;
        let notes = self.notes.iter().map(|(n, _)| width_of(n) * 0.85 + 2.0 * GAP).fold(0.0, f64::max);
        let height = count(rows) * (CELL_HEIGHT + GAP) + GAP + HEADER + count(self.notes.len()) * NOTE_HEIGHT;
        (width.max(title).max(notes), height)
    }
}

/// A text, and the edges that it stands for.
type Note = (String, Vec<usize>);

/// What goes from one box to another with one outcome (its rank and word): the edges.
type Between<'a> = BTreeMap<(usize, usize, u8, &'a str), Vec<usize>>;

/// Places everything.
pub(super) fn place(graph: &Graph) -> Picture {
    let mut clusters = clusters(graph);
    let mut of_node = vec![0; graph.nodes.len()];
    for (c, cluster) in clusters.iter().enumerate() {
        for i in &cluster.nodes {
            of_node[*i] = c;
        }
    }
    let mut between = Between::new();
    for (i, e) in graph.edges.iter().enumerate() {
        let (from, to) = (of_node[e.source], of_node[e.destination]);
        if from == to && clusters[from].boxed {
            clusters[from].inside += 1;
        } else {
            between.entry((from, to, rank(&e.outcome), &e.outcome)).or_default().push(i);
        }
    }
    let hubs = hubs(&clusters, &between);
    let drawn = note(&mut clusters, between, &hubs);
    let boxes = pack(&clusters, &order(&clusters, &drawn));

    let mut nodes = vec![Rect::default(); graph.nodes.len()];
    let mut groups = Vec::new();
    for (cluster, r) in clusters.into_iter().zip(&boxes) {
        let r = *r;
        if !cluster.boxed {
            for i in &cluster.nodes {
                nodes[*i] = r;
            }
            continue;
        }
        for (at, i) in cluster.nodes.iter().enumerate() {
            let (row, column) = (count(at / cluster.columns), count(at % cluster.columns));
            nodes[*i] = Rect {
                x: r.x - r.w / 2.0 + GAP + column * (cluster.cell + GAP) + cluster.cell / 2.0,
                y: r.y - r.h / 2.0 + HEADER + row * (CELL_HEIGHT + GAP) + CELL_HEIGHT / 2.0,
                w: cluster.cell,
                h: CELL_HEIGHT,
            };
        }
        let Cluster { title, inside, notes, .. } = cluster;
        groups.push(Group { title: title.to_owned(), rect: r, inside, notes });
    }
    let lines = drawn.into_iter().map(|((from, to, outcome, _), edges)| {
        let (points, label) = course(boxes[from], boxes[to], outcome);
        Line { edges, points, label }
    });
    let lines = lines.collect();
    framed(Picture { view: View::Bundles, width: 0.0, height: 0.0, groups, nodes, lines })
}

/// Namespaces; identities without one by the folder of their ID; classes each by itself.
fn clusters(graph: &Graph) -> Vec<Cluster<'_>> {
    let mut boxes: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let mut single = Vec::new();
    for (i, n) in graph.nodes.iter().enumerate() {
        if !n.namespace.is_empty() {
            boxes.entry(&n.namespace).or_default().push(i);
        } else if n.is_workload {
            let folder = n.id.rsplit_once('/').map_or(n.id.as_str(), |(folder, _)| folder);
            boxes.entry(folder).or_default().push(i);
        } else {
            single.push(i);
        }
    }
    let cell = |nodes: &[usize]| nodes.iter().map(|i| node_width(&graph.nodes[*i].label)).fold(60.0, f64::max);
    let boxed = boxes.into_iter().map(|(title, nodes)| {
        let cell = cell(&nodes);
        let mut columns = 1;
        while count(columns) * (cell + GAP) < 0.8 * count(nodes.len().div_ceil(columns)) * (CELL_HEIGHT + GAP) {
            columns += 1;
        }
        Cluster { title, cell, nodes, boxed: true, columns, notes: Vec::new(), inside: 0 }
    });
    let single = single.into_iter().map(|i| Cluster {
        title: &graph.nodes[i].label,
        cell: cell(&[i]),
        nodes: vec![i],
        boxed: false,
        columns: 1,
        notes: Vec::new(),
        inside: 0,
    });
    boxed.chain(single).collect()
}

/// The small boxes that most others have to do with. A large box is about itself, whomever it talks to.
fn hubs(clusters: &[Cluster<'_>], between: &Between<'_>) -> BTreeSet<usize> {
    let mut others: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); clusters.len()];
    for (from, to, ..) in between.keys() {
        others[*from].insert(*to);
        others[*to].insert(*from);
    }
    let many = clusters.len() >= 6;
    let is_hub = |c: &usize| many && clusters[*c].nodes.len() <= 3 && others[*c].len() * 100 >= clusters.len() * HUB;
    (0..clusters.len()).filter(is_hub).collect()
}

/// Turns what goes to and from hubs into notes, the worst first, and gives what is left to be drawn.
fn note<'a>(clusters: &mut [Cluster<'_>], between: Between<'a>, hubs: &BTreeSet<usize>) -> Between<'a> {
    let mut drawn = Between::new();
    let mut notes: BTreeMap<(usize, Reverse<u8>), Vec<Note>> = BTreeMap::new();
    for (key, edges) in between {
        let (from, to, rank, outcome) = key;
        let (own, hub, arrow) = match (hubs.contains(&from), hubs.contains(&to)) {
            (false, true) => (from, to, "to"),
            (true, false) => (to, from, "from"),
            _ => {
                drawn.insert(key, edges);
                continue;
            }
        };
        if !clusters[own].boxed {
            drawn.insert(key, edges);
            continue;
        }
        let word = if outcome == "allowed" { String::new() } else { format!(" {}", escape::shortened(outcome, 12)) };
        let name = escape::shortened(clusters[hub].title, super::LABEL);
        let text = format!("{} {arrow} {name}{word}", edges.len());
        notes.entry((own, Reverse(rank))).or_default().push((text, edges));
    }
    for ((own, _), notes) in notes {
        clusters[own].notes.extend(notes);
    }
    for c in clusters.iter_mut().filter(|c| c.notes.len() > NOTES) {
        let rest: Vec<usize> = c.notes.drain(NOTES - 1..).flat_map(|(_, edges)| edges).collect();
        c.notes.push((format!("{} more to and from others", rest.len()), rest));
    }
    drawn
}

/// An order in which boxes that have much to do with each other come near each other: each next one is that which has
/// most to do with those already there, the latest counting most.
fn order(clusters: &[Cluster<'_>], drawn: &Between<'_>) -> Vec<usize> {
    let mut weight: BTreeMap<(usize, usize), f64> = BTreeMap::new();
    for ((from, to, ..), edges) in drawn {
        for pair in [(*from, *to), (*to, *from)] {
            *weight.entry(pair).or_default() += count(edges.len());
        }
    }
    let mut left: BTreeSet<usize> = (0..clusters.len()).collect();
    let mut pull = vec![0.0_f64; clusters.len()];
    let mut order = Vec::new();
    // The first of those that pull most; of equals, the box with more nodes.
    let best = |left: &BTreeSet<usize>, pull: &[f64]| {
        let key = |c: usize| (pull[c], count(clusters[c].nodes.len()));
        left.iter().copied().reduce(|a, b| if key(b) > key(a) { b } else { a })
    };
    while let Some(next) = best(&left, &pull) {
        left.remove(&next);
        order.push(next);
        for (c, p) in pull.iter_mut().enumerate() {
            *p = *p * 0.6 + weight.get(&(next, c)).copied().unwrap_or_default();
        }
    }
    order
}

/// Puts the boxes into columns, down one and up the next, so that neighbours in the order stay neighbours.
fn pack(clusters: &[Cluster<'_>], order: &[usize]) -> Vec<Rect> {
    let sizes: Vec<(f64, f64)> = clusters.iter().map(Cluster::size).collect();
    let area: f64 = sizes.iter().map(|(w, h)| (w + ASIDE) * (h + BELOW)).sum();
    let tallest = sizes.iter().map(|(_, h)| *h).fold(0.0, f64::max);
    let target = (area / 1.5).sqrt().max(tallest);
    let mut columns: Vec<Vec<usize>> = vec![Vec::new()];
    let mut height = 0.0;
    for c in order {
        if height + sizes[*c].1 > target && height > 0.0 {
            columns.push(Vec::new());
            height = 0.0;
        }
        height += sizes[*c].1 + BELOW;
        if let Some(column) = columns.last_mut() {
            column.push(*c);
        }
    }
    let mut boxes = vec![Rect::default(); clusters.len()];
    let mut x = 0.0;
    for (number, mut column) in columns.into_iter().enumerate() {
        if number % 2 == 1 {
            column.reverse();
        }
        let width = column.iter().map(|c| sizes[*c].0).fold(0.0, f64::max);
        let all: f64 = column.iter().map(|c| sizes[*c].1).sum();
        // What is left of the height goes between the boxes.
        let gap = ((target + 2.0 * BELOW - all) / count(column.len() + 1)).max(BELOW);
        let mut y = gap;
        for c in column {
            let (w, h) = sizes[c];
            boxes[c] = Rect { x: x + width / 2.0, y: y + h / 2.0, w, h };
            y += h + gap;
        }
        x += width + ASIDE;
    }
    boxes
}

/// From border to border, bent a little to the left of its way: so neither the way back nor another outcome lies on it.
fn course(from: Rect, to: Rect, outcome: u8) -> (Vec<(f64, f64)>, (f64, f64)) {
    if from == to {
        let (x, y) = (from.x + from.w / 2.0, from.y);
        return (vec![(x, y - 4.0), (x + 22.0, y - 12.0), (x + 22.0, y + 12.0), (x, y + 4.0)], (x + 24.0, y));
    }
    let (dx, dy) = (to.x - from.x, to.y - from.y);
    let bend = 0.10 + 0.05 * f64::from(outcome.min(4));
    let middle = (f64::midpoint(from.x, to.x) + dy * bend, f64::midpoint(from.y, to.y) - dx * bend);
    let start = border(from, middle);
    let end = border(to, middle);
    // The middle of a quadratic curve.
    let at = |a: f64, b: f64, c: f64| 0.25 * a + 0.5 * b + 0.25 * c;
    let label = (at(start.0, middle.0, end.0), at(start.1, middle.1, end.1));
    (vec![start, middle, end], label)
}

/// Where the way from a box's middle to a point crosses its border.
fn border(r: Rect, (x, y): (f64, f64)) -> (f64, f64) {
    let (dx, dy) = (x - r.x, y - r.y);
    let part = |half: f64, d: f64| if d == 0.0 { f64::MAX } else { half / d.abs() };
    let t = part(r.w / 2.0, dx).min(part(r.h / 2.0, dy)).min(1.0);
    (r.x + dx * t, r.y + dy * t)
}
