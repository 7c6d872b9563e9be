//! What is drawn: the same for the same history, readable, and never what a name says.

use super::*;
use proptest::prelude::*;
use std::net::IpAddr;

fn name(id: &str, namespace: &str) -> PeerName {
    PeerName { id: id.to_owned(), namespace: namespace.to_owned() }
}

fn record(source: PeerName, destination: PeerName, port: u16, outcome: &str) -> Record {
    Record {
        link: crate::history::Link { source, destination, protocol: 6, port },
        outcome: outcome.to_owned(),
        reason: "rule".to_owned(),
        address: None,
        name: None,
        counts: Counts { attempts: 1500, established: 1400, ..Counts::default() },
        first: 1_700_000_000_000,
        last: 1_700_000_100_000,
        hours: 1,
        days: 1,
        by_destination: false,
        source_executables: BTreeSet::new(),
        destination_executables: BTreeSet::new(),
    }
}

fn history(records: Vec<Record>) -> History {
    let window = Window { from: 1_700_000_000_000, to: 1_700_000_100_000, watched: 100_000, unattributed: 0 };
    History { window, records, ..History::default() }
}

fn workload(namespace: &str, n: usize) -> PeerName {
    name(&format!("spiffe://t/ns/{namespace}/sa/w{n}"), namespace)
}

/// An estate of so many identities in namespaces of ten, each talking to some others.
fn estate(size: usize) -> History {
    let of = |n: usize| workload(&format!("team-{:02}", n / 10), n);
    let outcomes = ["allowed", "allowed", "allowed", "would-deny", "would-allow", "denied"];
    let mut records = Vec::new();
    for n in 0..size {
        for step in [1, 3, 17] {
            let port = u16::try_from(8000 + n % 7).expect("small");
            records.push(record(of(n), of((n + step) % size), port, outcomes[(n + step) % outcomes.len()]));
        }
        records.push(record(of(n), name("node-dns", ""), 53, "allowed"));
    }
    history(records)
}

fn all_forms(graph: &Graph) -> [(&'static str, String); 6] {
    [
        ("text", text::render(graph, |_, shown| shown.to_owned())),
        ("dot", dot::render(graph)),
        ("mermaid", mermaid::render(graph)),
        ("svg", svg::render(graph)),
        ("html", html::render(graph)),
        ("json", graph.to_json().expect("plain data")),
    ]
}

#[test]
fn a_service_reads_like_one_and_stands_in_its_namespace() {
    let service = crate::identity::Identity::service("shop/db:sql");
    let to = PeerName::of(bulkhead_common::PeerId(300), |_| Some(&service), |_| None);
    assert_eq!((to.id.as_str(), to.namespace.as_str()), ("service shop/db:sql", "shop"));
    let from = name("spiffe://t/ns/web/sa/front", "web");
    let text = text::render(&Graph::of(&history(vec![record(from, to, 80, "allowed")]), &Filter::default()), |_, w| {
        w.to_owned()
    });
    assert!(text.contains("shop/db:sql (Service) "), "{text}");
}

#[test]
fn edges_are_by_pair_and_outcome_with_their_ports() {
    let (a, b) = (workload("n", 1), workload("n", 2));
    let mut out = record(a.clone(), name("world", ""), 443, "allowed");
    out.address = Some(IpAddr::from([192, 0, 2, 1]));
    out.name = Some("api.example".to_owned());
    let g = Graph::of(
        &history(vec![
            record(a.clone(), b.clone(), 81, "allowed"),
            record(a.clone(), b.clone(), 80, "allowed"),
            record(a.clone(), b.clone(), 80, "denied"),
            out,
        ]),
        &Filter::default(),
    );
    let labels: Vec<_> = g.nodes.iter().map(|n| (n.namespace.as_str(), n.label.as_str(), n.is_workload)).collect();
    assert_eq!(labels, [("", "world", false), ("n", "w1", true), ("n", "w2", true)]);
    let edges: Vec<_> = g.edges.iter().map(|e| (e.outcome.as_str(), e.ports_in_short(1), e.counts.attempts)).collect();
    let of = |outcome, ports: &str, n| (outcome, ports.to_owned(), n);
    assert_eq!(edges, [of("allowed", "tcp/443", 1500), of("allowed", "tcp/80 +1", 3000), of("denied", "tcp/80", 1500)]);
    assert!(g.edges[0].addresses.contains("api.example (192.0.2.1)"));

    let some = Filter { verdict: Some("denied".to_owned()), ..Filter::default() };
    assert_eq!(Graph::of(&estate(20), &some).edges.iter().filter(|e| e.outcome != "denied").count(), 0);
    let some = Filter { namespace: Some("team-01".to_owned()), id: Some("sa/w3".to_owned()), ..Filter::default() };
    assert!(Graph::of(&estate(40), &some).edges.len() < 30);
}

#[test]
fn labels_tell_apart_what_is_in_one_namespace() {
    let pairs = [("spiffe://t/a/web", "spiffe://t/b/web"), ("spiffe://t/x", "spiffe://u/x")];
    for (one, other) in pairs {
        let g = Graph::of(&history(vec![record(name(one, ""), name(other, ""), 1, "allowed")]), &Filter::default());
        assert_ne!(g.nodes[0].label, g.nodes[1].label, "{one} and {other}");
    }
}

#[test]
fn the_same_history_is_drawn_the_same() {
    for size in [10, 60, 300] {
        let history = estate(size);
        let mut shuffled = history.clone();
        shuffled.records.reverse();
        let once = all_forms(&Graph::of(&history, &Filter::default()));
        assert!(once == all_forms(&Graph::of(&history, &Filter::default())), "{size}");
        assert!(once == all_forms(&Graph::of(&shuffled, &Filter::default())), "{size}, in another order");
    }
}

#[test]
fn nothing_lies_on_anything_else() {
    for size in [4, 10, 40, 60, 300] {
        let g = Graph::of(&estate(size), &Filter::default());
        let p = place::place(&g);
        let apart = |a: &place::Rect, b: &place::Rect| {
            (a.x - b.x).abs() * 2.0 >= a.w + b.w - 0.1 || (a.y - b.y).abs() * 2.0 >= a.h + b.h - 0.1
        };
        for (i, a) in p.nodes.iter().enumerate() {
            assert!(p.nodes.iter().skip(i + 1).all(|b| apart(a, b)), "of {size}, node {i} lies on another");
            assert!(a.x - a.w / 2.0 >= 0.0 && a.x + a.w / 2.0 <= p.width && a.y + a.h / 2.0 <= p.height);
        }
        if p.view == place::View::Bundles {
            for (i, a) in p.groups.iter().enumerate() {
                assert!(p.groups.iter().skip(i + 1).all(|b| apart(&a.rect, &b.rect)), "of {size}, box {i}");
            }
            assert!(p.width < 3500.0 && p.height < 2500.0, "{size}: {} x {}", p.width, p.height);
        }
        let drawn: BTreeSet<usize> = p.lines.iter().flat_map(|l| &l.edges).copied().collect();
        let noted = p.groups.iter().flat_map(|g| &g.notes).map(|(_, edges)| edges.len()).sum::<usize>();
        let inside: usize = p.groups.iter().map(|g| g.inside).sum();
        assert_eq!(drawn.len() + noted + inside, g.edges.len(), "each edge is drawn, noted or counted");
    }
}

#[test]
fn a_terminal_gets_a_hundred_columns_and_nothing_else() {
    let long = name(&format!("spiffe://t/{}", "x".repeat(300)), &"n".repeat(300));
    let mut history = estate(30);
    history.records.push(record(long.clone(), long, 1, "denied"));
    history.records.push(record(name("spiffe://t/\u{1b}[2J", "a\nb"), name("world", ""), 1, "\u{1b}]0;x\u{7}"));
    let page = text::render(&Graph::of(&history, &Filter::default()), |_, shown| shown.to_owned());
    let wide: Vec<&str> = page.lines().filter(|l| l.chars().count() > 100).collect();
    assert!(wide.is_empty(), "{wide:?}");
    assert!(!page.contains('\u{1b}') && !page.contains("a\nb"));
    let empty = text::render(&Graph::default(), |_, shown| shown.to_owned());
    assert!(empty.contains("Nothing was seen"));
}

#[test]
fn an_empty_graph_is_drawn_too() {
    for (form, text) in all_forms(&Graph::of(&History::default(), &Filter::default())) {
        assert!(!text.is_empty(), "{form}");
    }
}

/// What attackers write into names.
const NASTY: &[&str] = &[
    "</title><script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "' onload='alert(1)",
    "]]><!--",
    "--></svg></script><script>alert(1)//",
    "\"]; evil [shell=\"x\", URL=\"javascript:alert(1)\"]; \"",
    "\\\"; }",
    "\"]\n  click n0 href \"javascript:alert(1)\"",
    "%%{init: {'securityLevel': 'loose'}}%%",
    "`${alert(1)}`",
    "#quot;&quot;&#34;&lt;script&gt;",
    "\u{1b}]8;;http://x\u{7}click\u{1b}]8;;\u{7}",
    "a\r\nb\tc\u{0}d\u{202e}e\u{2028}f\u{fffe}g\u{9b}31m",
    "=HYPERLINK(\"http://x\")",
];

fn nasty_graph(texts: &[&str]) -> Graph {
    let records = texts.iter().enumerate().flat_map(|(i, text)| {
        let mut r = record(name(text, text), workload("n", i), 80, if i % 3 == 0 { text } else { "denied" });
        r.reason = (*text).to_owned();
        r.address = Some(IpAddr::from([192, 0, 2, 1]));
        r.name = Some((*text).to_owned());
        r.source_executables.insert((*text).to_owned());
        r.destination_executables.insert((*text).to_owned());
        [r, record(workload("n", i), name(&format!("spiffe://{text}/{text}"), ""), 81, "allowed")]
    });
    Graph::of(&history(records.collect()), &Filter::default())
}

/// What our own SVG is made of.
const ELEMENTS: &[&str] = &["svg", "rect", "text", "defs", "marker", "path", "g", "title"];

fn assert_only_ours(svg: &str) {
    let document = roxmltree::Document::parse(svg).unwrap_or_else(|e| panic!("{e}\n{svg}"));
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        assert!(ELEMENTS.contains(&node.tag_name().name()), "{}", node.tag_name().name());
        for a in node.attributes() {
            assert!(!a.name().starts_with("on") && !a.name().contains("href"), "{}", a.name());
        }
    }
    assert!(!svg.chars().any(|c| c.is_control() && c != '\n'));
}

fn assert_harmless(graph: &Graph) {
    for (form, text) in all_forms(graph) {
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{form} has control characters");
        assert!(!text.contains('\u{202e}'), "{form} turns the direction");
        match form {
            "svg" => assert_only_ours(&text),
            "html" => {
                let picture = &text[text.find("<svg").expect("one")..text.find("</svg>").expect("its end") + 6];
                assert_only_ours(picture);
                assert_eq!(text.matches("<script").count(), 2, "ours and its data");
                assert_eq!(text.matches("</script").count(), 2);
                let table = &text[text.find("<table>").expect("one")..text.find("</table>").expect("its end") + 8];
                let table = table.replace("<br>", "<br/>");
                let parsed = roxmltree::Document::parse(&table).expect("well formed");
                let ours = ["table", "thead", "tbody", "tr", "th", "td", "small", "br"];
                assert!(parsed.descendants().filter(|n| n.is_element()).all(|n| ours.contains(&n.tag_name().name())));
            }
            // A line is a statement: none begins with what a name says, and quotes are closed in it.
            "dot" => {
                for line in text.lines() {
                    let bare = line.replace("\\\\", "").replace("\\\"", "");
                    assert!(bare.matches('"').count() % 2 == 0, "{line}");
                    let outside: String = bare.split('"').step_by(2).collect();
                    assert!(!outside.contains("URL") && !outside.contains("shell"), "{line}");
                }
            }
            "mermaid" => {
                for line in text.lines() {
                    assert!(matches!(line.matches('"').count(), 0 | 2), "{line}");
                    let outside: String = line.split('"').step_by(2).collect();
                    assert!(!outside.contains("click") && !outside.contains("%%"), "{line}");
                    assert!(!line.contains('<') && !line.contains('`'), "{line}");
                }
            }
            "json" => {
                let back: serde_json::Value = serde_json::from_str(&text).expect("what was written");
                assert_eq!(back["nodes"].as_array().map(Vec::len), Some(graph.nodes.len()));
            }
            _ => {}
        }
    }
}

#[test]
fn hostile_names_become_text_in_every_form() {
    assert_harmless(&nasty_graph(NASTY));
    // The large view, too.
    let mut graph = nasty_graph(NASTY);
    for _ in 0..2 {
        let mut more = graph.edges.clone();
        more.extend(graph.edges.clone());
        graph.edges = more;
    }
    assert_eq!(place::place(&graph).view, place::View::Bundles);
    assert_harmless(&graph);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn any_name_becomes_text_in_every_form(texts in proptest::collection::vec(any::<String>(), 1..5)) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_harmless(&nasty_graph(&texts));
    }
}
