//! Answers are read as they should be, and whatever else comes is harmless.

use super::*;
use hickory_proto::op::Message;
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::serialize::binary::BinEncodable;
use proptest::prelude::*;
use std::str::FromStr;

fn name(text: &str) -> Name {
    Name::from_str(text).expect("a name")
}

fn record(owner: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(name(owner), ttl, data)
}

fn a(owner: &str, ttl: u32, last: u8) -> Record {
    record(owner, ttl, RData::A(A::new(203, 0, 113, last)))
}

fn alias(owner: &str, ttl: u32, to: &str) -> Record {
    record(owner, ttl, RData::CNAME(CNAME(name(to))))
}

fn datagram(asked: &str, records: Vec<Record>) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Response, OpCode::Query);
    message.queries.push(Query::query(name(asked), hickory_proto::rr::RecordType::A));
    message.answers = records;
    message.to_bytes().expect("it can be written")
}

fn told(bytes: &[u8]) -> Option<(String, Vec<(String, u32)>)> {
    let Answer { name, addresses } = read(bytes)?;
    Some((name, addresses.into_iter().map(|(a, ttl)| (a.to_string(), ttl)).collect()))
}

#[test]
fn addresses_belong_to_the_name_that_was_asked_for() {
    let both = vec![
        alias("API.stripe.example.", 300, "edge.cdn.example."),
        // In any order, as some servers do.
        a("b.cdn.example.", 20, 7),
        alias("edge.cdn.example.", 60, "b.cdn.example."),
        a("b.cdn.example.", 30, 8),
        // Of something else.
        a("other.example.", 30, 99),
    ];
    let said = told(&datagram("api.Stripe.example.", both)).expect("an answer");
    assert_eq!(said.0, "api.stripe.example");
    assert_eq!(said.1, [("203.0.113.7".to_owned(), 20), ("203.0.113.8".to_owned(), 30)]);
    let six = record("six.example.", 5, RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)));
    let said = told(&datagram("six.example.", vec![six])).expect("an answer");
    assert_eq!(said.1, [("2001:db8::1".to_owned(), 5)]);
}

#[test]
fn what_is_no_answer_names_nothing() {
    assert_eq!(read(&[]), None);
    assert_eq!(read(&datagram("a.example.", Vec::new())), None);
    let strangers = vec![a("other.example.", 1, 1), alias("x.example.", 1, "y.example.")];
    assert_eq!(read(&datagram("a.example.", strangers)), None);
    // In a circle.
    let circle = vec![alias("a.example.", 1, "b.example."), alias("b.example.", 1, "a.example.")];
    assert_eq!(read(&datagram("a.example.", circle)), None);
    let good = datagram("a.example.", vec![a("a.example.", 1, 1)]);
    assert!(read(&good).is_some());
    let mut question = good.clone();
    question[2] &= 0x7f;
    assert_eq!(read(&question), None);
    let mut refused = good.clone();
    refused[3] |= 5;
    assert_eq!(read(&refused), None);
}

#[test]
fn what_was_cut_off_leaves_what_was_whole() {
    let whole = datagram("a.example.", (0..60).map(|n| a("a.example.", 9, n)).collect());
    let cut = &whole[..512];
    let Answer { addresses, .. } = read(cut).expect("an answer");
    assert!(addresses.len() > 20 && addresses.len() < 60, "{}", addresses.len());
    assert_eq!(read(&whole).map(|a| a.addresses.len()), Some(60));
}

#[test]
fn a_hostile_name_is_only_text() {
    let mut label = b"<script>\x1b[2J\"'\\\n".to_vec();
    label.insert(0, u8::try_from(label.len()).expect("short"));
    label.extend(b"\x04evil\x00");
    let mut bytes = vec![0, 7, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
    bytes.extend(&label);
    bytes.extend([0, 1, 0, 1, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 1]);
    let Answer { name, addresses } = read(&bytes).expect("an answer");
    assert!(name.chars().all(|c| !c.is_control()), "{name:?}");
    assert!(name.ends_with("evil") && name.len() < 256, "{name:?}");
    assert_eq!(addresses.len(), 1);
}

proptest! {
    /// Whatever comes, nothing panics, and what is read is bounded.
    #[test]
    fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Some(answer) = read(&bytes) {
            prop_assert!(answer.addresses.len() <= usize::from(RECORDS));
        }
    }

    /// The same near to what is right: an answer with some bytes changed, cut anywhere.
    #[test]
    fn so_are_damaged_answers(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        end in any::<prop::sample::Index>(),
    ) {
        let records = vec![alias("a.example.", 1, "b.example."), a("b.example.", 2, 1), a("b.example.", 2, 2)];
        let mut bytes = datagram("a.example.", records);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(end.index(bytes.len() + 1));
        if let Some(answer) = read(&bytes) {
            prop_assert!(answer.addresses.len() <= usize::from(RECORDS));
            prop_assert!(answer.name.chars().all(|c| !c.is_control()));
        }
    }
}
