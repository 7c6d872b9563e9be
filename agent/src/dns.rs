//! What DNS answers say: by which name a workload had asked for an address.
//!
//! The answers come from the network, and whoever sends them says in them what he likes. So a name is a hint: it is kept
//! for the workload that got the answer and for nobody else, it is shown and never judged by, and there is no input at
//! which this panics or grows beyond its bounds.
//!
//! Pure: time comes in with each call.

mod resolved;

pub use resolved::Resolved;

use hickory_proto::op::{Header, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use std::net::IpAddr;

/// How many records of an answer are looked at.
const RECORDS: u16 = 64;
/// How many aliases may lead from the name to an address.
const ALIASES: usize = 16;

/// What was asked for, and what was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The name that was asked for: printable, in lower case, without the last dot.
    pub name: String,
    /// The addresses, and for how many seconds they hold.
    pub addresses: Vec<(IpAddr, u32)>,
}

/// Reads an answer, or the beginning of one. `None`: it names no address.
pub fn read(datagram: &[u8]) -> Option<Answer> {
    let mut decoder = BinDecoder::new(datagram);
    let header = Header::read(&mut decoder).ok()?;
    let answered = header.message_type == MessageType::Response
        && header.op_code == OpCode::Query
        && header.response_code == ResponseCode::NoError
        && header.counts.queries == 1;
    if !answered {
        return None;
    }
    let asked = Query::read(&mut decoder).ok()?;
    if asked.query_class != DNSClass::IN {
        return None;
    }
    // What comes after a record that can't be read, or that was cut off, isn't known.
    let records: Vec<Record> =
        (0..header.counts.answers.min(RECORDS)).map_while(|_| Record::read(&mut decoder).ok()).collect();
    let name = asked.name.to_lowercase();
    let mut addresses = Vec::new();
    let (mut at, mut ttl) = (name.clone(), u32::MAX);
    for _ in 0..=ALIASES {
        let here = || records.iter().filter(|r| r.dns_class == DNSClass::IN && r.name.to_lowercase() == at);
        addresses.extend(here().filter_map(|r| Some((r.data.ip_addr()?, ttl.min(r.ttl)))));
        if !addresses.is_empty() {
            break;
        }
        let alias = here().find_map(|r| match &r.data {
            RData::CNAME(to) => Some((to.0.to_lowercase(), ttl.min(r.ttl))),
            _ => None,
        });
        (at, ttl) = alias?;
    }
    (!addresses.is_empty()).then(|| Answer { name: printable(&name), addresses })
}

/// A name as text. Labels may have any bytes in them.
fn printable(name: &Name) -> String {
    let text = name.to_ascii();
    let text = text.strip_suffix('.').filter(|t| !t.is_empty()).unwrap_or(&text);
    crate::serve::api::printable(text.as_bytes())
}

#[cfg(test)]
mod tests;
