//! What `bulkhead observe --json` says, and tables of it.

use crate::bank::{Home, PARTIES, Proto, Way};
use crate::screen::table;
use anyhow::{Context as _, Result, bail};
use comfy_table::Table;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// One line of it, both families together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Flow {
    /// The opener's name.
    pub(crate) source: String,
    /// The name of who was connected to.
    pub(crate) destination: String,
    /// The destination's port.
    pub(crate) port: u16,
    /// The protocol.
    pub(crate) proto: Proto,
    /// Why it was decided so.
    pub(crate) reason: String,
    /// How often.
    pub(crate) count: u64,
}

impl Flow {
    /// Whether it counts what goes along this way.
    pub(crate) fn is_of(&self, way: Way) -> bool {
        let (from, to) = (&PARTIES[way.from], &PARTIES[way.to]);
        self.source == from.name && self.destination == to.name && self.port == to.port && self.proto == way.proto
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {} {}/{}", self.source, self.destination, self.proto, self.port)
    }
}

/// The SPIFFE ID of a party.
pub(crate) fn id(name: &str) -> String {
    PARTIES.iter().find(|p| p.name == name).map_or_else(|| name.to_owned(), |p| p.id.to_owned())
}

/// A party's name, of what Bulkhead knows it as.
pub(crate) fn name(id: &Value) -> String {
    let id = id.as_str().unwrap_or("?");
    // The world, or a prefix of it that a policy names: nobody but the card network is out there.
    let outside = id == "world" || !id.starts_with("spiffe://") && id.contains('/');
    let party = PARTIES.iter().find(|p| if outside { p.home == Home::Outside } else { p.id == id });
    party.map_or(id, |p| p.name).to_owned()
}

/// The flows among these lines. Each is counted at both ends; the opener's count is taken where it has one.
pub(crate) fn read(lines: &[Value]) -> Result<Vec<Flow>> {
    let mut all: Vec<Flow> = Vec::new();
    for line in lines {
        let text = |key: &str| line[key].as_str().with_context(|| format!("no `{key}`"));
        let number = |key: &str| line[key].as_u64().with_context(|| format!("no `{key}`"));
        let proto = match number("protocol")? {
            6 => Proto::Tcp,
            17 => Proto::Udp,
            // What keeps a network going: not the bank's business.
            _ => continue,
        };
        let source = &line["source"]["id"];
        let outside = !source.as_str().context("no `source`")?.starts_with("spiffe://");
        match text("direction")? {
            "egress" if !outside => {}
            "ingress" if outside => {}
            "egress" | "ingress" => continue,
            other => bail!("a direction called {other}"),
        }
        let flow = Flow {
            source: name(source),
            destination: name(&line["destination"]["id"]),
            port: u16::try_from(number("port")?)?,
            proto,
            reason: text("reason")?.to_owned(),
            count: number("total")?,
        };
        match all.iter_mut().find(|f| Flow { count: flow.count, ..(*f).clone() } == flow) {
            Some(same) => same.count += flow.count,
            None => all.push(flow),
        }
    }
    Ok(all)
}

/// What would be refused, a row for each destination.
pub(crate) fn by_destination(flows: &[Flow]) -> Table {
    let mut rows: BTreeMap<(&str, &str, &str), Vec<&Flow>> = BTreeMap::new();
    for flow in flows {
        rows.entry((&flow.source, &flow.destination, &flow.reason)).or_default().push(flow);
    }
    let mut table = table(&["from", "to", "on which port, how often", "why"]);
    for ((from, to, reason), flows) in rows {
        table.add_row([from.to_owned(), to.to_owned(), ports(&flows), reason.to_owned()]);
    }
    table
}

fn ports(flows: &[&Flow]) -> String {
    let each = flows.iter().map(|f| format!("{}/{} ×{}", f.proto, f.port, f.count));
    each.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(source: &str, destination: &str, direction: &str, total: u64) -> Value {
        json!({
            "source": {"id": source}, "destination": {"id": destination}, "port": 443, "protocol": 6,
            "direction": direction, "outcome": "allowed", "reason": "rule", "total": total, "first": 1, "last": 2,
        })
    }

    #[test]
    fn a_flow_is_counted_once_although_both_ends_count_it() {
        let payments = id("payments");
        let lines = [
            line(&payments, "198.51.100.0/24", "egress", 3),
            line(&payments, "2001:db8:ca4d::/48", "egress", 4),
            line("world", &payments, "ingress", 5),
            line(&payments, &id("web"), "ingress", 6),
        ];
        let flows = read(&lines).expect("well-formed lines");
        let told: Vec<String> = flows.iter().map(|f| format!("{f} {}", f.count)).collect();
        assert_eq!(told, ["payments to card-network tcp/443 7", "card-network to payments tcp/443 5"]);
    }
}
