//! A document as it was written: values with their places and the path that leads to them.
//!
//! Objects of several kinds and lists of them stand in one file, so no one type fits. What is read from the tree is taken
//! out of it, and whatever remains is a field that isn't known: an error, since nobody can say what it would change.

use crate::policy::diagnostic::{At, Diagnostic, Severity};
use crate::policy::parse::{split, yaml_fault};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::sync::Arc;

/// What a value is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Number(i64),
    Text(String),
    List(Vec<At<Node>>),
    Map(Vec<(String, At<Node>)>),
}

impl Node {
    const fn noun(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "an object",
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Whatever)
    }
}

struct Whatever;

impl<'de> Visitor<'de> for Whatever {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Node, D::Error> {
        Node::deserialize(d)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(i64::try_from(value).map_or_else(|_| Node::Text(value.to_string()), Node::Number))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Text(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = all.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Node, A::Error> {
        let mut map: Vec<(String, At<Node>)> = Vec::new();
        while let Some((key, value)) = all.next_entry::<String, At<Node>>()? {
            if map.iter().any(|(k, _)| *k == key) {
                return Err(serde::de::Error::custom(format!("`{key}` stands twice in one object")));
            }
            map.push((key, value));
        }
        Ok(Node::Map(map))
    }
}

/// Where a value stands: in the file, and in its object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Spot {
    pub(super) line: u32,
    pub(super) column: u32,
    /// Such as `spec.ingress[0].from`.
    pub(super) path: String,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) spot: Spot,
    pub(super) node: Node,
}

/// An object whose fields are taken out one by one.
pub(super) struct Fields {
    pub(super) spot: Spot,
    map: Vec<(String, At<Node>)>,
}

impl Fields {
    /// An object without any.
    pub(super) fn none(spot: Spot) -> Self {
        Self { spot, map: Vec::new() }
    }

    /// A field; one without a value counts as not there, as it does for the API server.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        let (_, value) = self.map.remove(self.map.iter().position(|(k, _)| k == name)?);
        let path = if self.spot.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.spot.path) };
        let At { value, line, column } = value;
        Some(Value { spot: Spot { line, column, path }, node: value }).filter(|v| v.node != Node::Null)
    }

    /// The fields that are left.
    pub(super) fn rest(mut self) -> Vec<(String, Value)> {
        let names: Vec<String> = self.map.iter().map(|(k, _)| k.clone()).collect();
        names.into_iter().filter_map(|name| self.take(&name).map(|value| (name, value))).collect()
    }
}

/// Reads one file, and gathers what is wrong with it.
pub(super) struct Reader {
    pub(super) file: Arc<str>,
    pub(super) faults: Vec<Diagnostic>,
}

impl Reader {
    /// The objects of a file: its documents, and the items of those that are lists.
    pub(super) fn objects(&mut self, text: &str) -> Vec<Fields> {
        let mut objects = Vec::new();
        for (before, part) in split(text) {
            match serde_saphyr::from_str_with_options::<At<Node>>(&part, options()) {
                Ok(At { value, line, column }) => {
                    let spot = Spot { line: line + before, column, path: String::new() };
                    self.object(Value { spot, node: moved(value, before) }, &mut objects);
                }
                Err(e) => {
                    let mut fault = yaml_fault(&self.file, &e);
                    fault.hint =
                        Some("an object, or a list of objects, as `kubectl get -o yaml` writes them".to_owned());
                    fault.line += if fault.line > 0 { before } else { 0 };
                    self.faults.push(fault);
                }
            }
        }
        objects
    }

    fn object(&mut self, value: Value, objects: &mut Vec<Fields>) {
        let spot = value.spot.clone();
        let mut fields = self.map(value);
        let list =
            fields.map.iter().any(|(k, v)| k == "kind" && matches!(&v.value, Node::Text(t) if t.ends_with("List")));
        if !list {
            objects.push(fields);
            return;
        }
        for item in fields.take("items").map(|v| self.list(v)).unwrap_or_default() {
            let At { value, line, column } = At { value: item.node, line: item.spot.line, column: item.spot.column };
            self.object(Value { spot: Spot { line, column, path: spot.path.clone() }, node: value }, objects);
        }
    }

    pub(super) fn fault(&mut self, spot: &Spot, message: impl Into<String>, hint: impl Into<String>) {
        let at = At { value: (), line: spot.line, column: spot.column };
        self.faults.push(at.diagnose(&self.file, Severity::Error, message, hint));
    }

    fn other(&mut self, value: &Value, wanted: &str) {
        let message = format!("`{}` is {} and should be {wanted}", value.spot.path, value.node.noun());
        self.fault(&value.spot, message, "see the kind's reference for the form");
    }

    pub(super) fn map(&mut self, value: Value) -> Fields {
        match value.node {
            Node::Map(map) => Fields { spot: value.spot, map },
            _ => {
                self.other(&value, "an object");
                Fields { spot: value.spot, map: Vec::new() }
            }
        }
    }

    pub(super) fn list(&mut self, value: Value) -> Vec<Value> {
        let Value { spot, node } = value;
        match node {
            Node::List(list) => {
                let item = |(n, At { value, line, column }): (usize, At<Node>)| Value {
                    spot: Spot { line, column, path: format!("{}[{n}]", spot.path) },
                    node: value,
                };
                list.into_iter().enumerate().map(item).collect()
            }
            node => {
                self.other(&Value { spot, node }, "a list");
                Vec::new()
            }
        }
    }

    pub(super) fn text(&mut self, value: Value) -> Option<String> {
        match value.node {
            Node::Text(text) => Some(text),
            _ => {
                self.other(&value, "a text");
                None
            }
        }
    }

    pub(super) fn texts(&mut self, value: Value) -> Vec<(Spot, String)> {
        let list = self.list(value);
        list.into_iter().filter_map(|v| Some((v.spot.clone(), self.text(v)?))).collect()
    }

    pub(super) fn number(&mut self, value: Value) -> Option<i64> {
        match value.node {
            Node::Number(n) => Some(n),
            _ => {
                self.other(&value, "a number");
                None
            }
        }
    }

    /// Whatever nobody took isn't known.
    pub(super) fn finish(&mut self, fields: Fields) {
        for (name, value) in fields.rest() {
            let message =
                format!("`{}` isn't a field that is known: nobody can say what it would change", value.spot.path);
            let hint = format!("take `{name}` or the object out of the file, and import the rest");
            self.fault(&value.spot, message, hint);
        }
    }
}

/// The same value so many lines further down.
fn moved(node: Node, lines: u32) -> Node {
    let at = |a: At<Node>| At { value: moved(a.value, lines), line: a.line + lines, column: a.column };
    match node {
        Node::List(list) => Node::List(list.into_iter().map(at).collect()),
        Node::Map(map) => Node::Map(map.into_iter().map(|(k, v)| (k, at(v))).collect()),
        other => other,
    }
}

/// Room for a cluster's policies in one list.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_nodes: 4_000_000, max_events: 8_000_000 },
        // A namespace may be called `n`.
        strict_booleans: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_know_their_place_in_lists_of_objects_and_behind_other_documents() {
        let text = "a: 1\n---\nkind: List\nitems:\n- kind: X\n  spec:\n    list: [one, 2]\n";
        let mut reader = Reader { file: "f".into(), faults: Vec::new() };
        let mut objects = reader.objects(text);
        assert_eq!((objects.len(), &reader.faults[..]), (2, &[][..]));
        let spec = objects[1].take("spec").expect("a spec");
        let list = reader.map(spec).take("list").expect("a list");
        let items = reader.list(list);
        assert_eq!(items[1].spot, Spot { line: 7, column: 17, path: "spec.list[1]".to_owned() });
        assert_eq!(items[1].node, Node::Number(2));
    }

    #[test]
    fn what_nobody_took_is_an_error_with_its_place() {
        let mut reader = Reader { file: "f".into(), faults: Vec::new() };
        let objects = reader.objects("kind: X\nnews: {a: 1}\n");
        for mut fields in objects {
            fields.take("kind");
            reader.finish(fields);
        }
        assert!(reader.faults[0].to_string().starts_with("f:2:7: error: `news` isn't a field that is known"));
        let mut reader = Reader { file: "f".into(), faults: Vec::new() };
        assert!(reader.objects("a: [").is_empty() && reader.objects("a: 1\na: 2").is_empty());
        assert_eq!(reader.faults.len(), 2);
    }
}
