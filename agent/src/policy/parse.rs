//! From the text of a file to checked policies, each document by itself: a fault in one doesn't hide the others.

use super::convert;
use super::diagnostic::{At, Diagnostic, Severity};
use super::document::{API_VERSION, Object};
use super::model::{Kind, Policy, PolicyName};
use serde::de::DeserializeOwned;
use serde_saphyr::Error;
use std::sync::Arc;

/// A document that isn't taken.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// The file.
    pub file: Arc<str>,
    /// Whose last good form stays in force; `None` if not even the name could be read.
    pub name: Option<Arc<PolicyName>>,
    /// What stands in for it when there is no last good form: it selects the same and allows nothing. `None` if mode
    /// or selector couldn't be read.
    pub isolated: Option<Box<Policy>>,
    /// Why; at least one error.
    pub diagnostics: Vec<Diagnostic>,
}

/// One document of a file.
pub type Document = Result<Arc<Policy>, Rejected>;

/// Reads a file of policies: YAML, one document or several, in the order of the file.
pub fn read(file: &str, text: &str) -> Vec<Document> {
    let file: Arc<str> = file.into();
    let taken = |(lines_before, part): &(u32, String)| match document(&file, part) {
        Ok(mut policy) => {
            Arc::make_mut(&mut policy).move_down(*lines_before);
            Ok(policy)
        }
        Err(mut rejected) => {
            rejected.diagnostics.iter_mut().filter(|d| d.line > 0).for_each(|d| d.line += lines_before);
            rejected.isolated.iter_mut().for_each(|policy| policy.move_down(*lines_before));
            Err(rejected)
        }
    };
    split(text).iter().map(taken).collect()
}

/// The same for those who want all documents or none.
///
/// # Errors
/// Everything that is wrong with any of them.
pub fn parse(file: &str, text: &str) -> Result<Vec<Policy>, Vec<Diagnostic>> {
    let (mut policies, mut diagnostics) = (Vec::new(), Vec::new());
    for document in read(file, text) {
        match document {
            Ok(policy) => policies.push(Arc::unwrap_or_clone(policy)),
            Err(rejected) => diagnostics.extend(rejected.diagnostics),
        }
    }
    if diagnostics.is_empty() { Ok(policies) } else { Err(diagnostics) }
}

/// The documents of a stream, each with the number of lines before it. YAML allows `---` at the start of a line
/// nowhere else (1.2.2, 9.1.2).
pub(crate) fn split(text: &str) -> Vec<(u32, String)> {
    let mut parts = Vec::new();
    let mut part = (0, String::new());
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (n, line) in (0..).zip(text.lines()) {
        let marker = |m| line.strip_prefix(m).filter(|rest: &&str| rest.is_empty() || rest.starts_with([' ', '\t']));
        if let Some(rest) = marker("---") {
            parts.push(std::mem::replace(&mut part, (n, format!("   {rest}"))));
        } else if marker("...").is_some() {
            parts.push(std::mem::replace(&mut part, (n, String::new())));
        } else {
            part.1.push_str(line);
        }
        part.1.push('\n');
    }
    parts.push(part);
    let says_something =
        |l: &str| !l.trim_start().is_empty() && !l.trim_start().starts_with('#') && !l.starts_with('%');
    parts.retain(|(_, p)| p.lines().any(says_something));
    parts
}

/// What tells which type a document has. Everything else is left unread.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: At<String>,
    kind: At<String>,
}

/// The kind of a document, if its head is as it must be.
fn head(file: &Arc<str>, text: &str) -> Result<Kind, Rejected> {
    let nameless = |d| Rejected { file: Arc::clone(file), name: None, isolated: None, diagnostics: vec![d] };
    let Head { api_version, kind } = serde_saphyr::from_str(text).map_err(|e| nameless(yaml_fault(file, &e)))?;
    if *api_version != API_VERSION {
        let message = format!("apiVersion `{}` isn't known", *api_version);
        let hint = format!("write `apiVersion: {API_VERSION}`");
        return Err(nameless(api_version.diagnose(file, Severity::Error, message, hint)));
    }
    Kind::from_name(&kind).ok_or_else(|| {
        let message = format!("kind `{}` isn't known", *kind);
        let hint = "write SegmentationPolicy or ClusterSegmentationPolicy";
        nameless(kind.diagnose(file, Severity::Error, message, hint))
    })
}

/// Reading takes its time, and mostly what looks like the kind at first sight is the kind. So the head is only read by
/// itself where that leads nowhere.
fn document(file: &Arc<str>, text: &str) -> Document {
    if let Some(policy) = guess(text).and_then(|kind| of_kind(file, text, kind).ok()) {
        return Ok(Arc::new(policy));
    }
    let kind = head(file, text)?;
    of_kind(file, text, kind).map(Arc::new).map_err(|diagnostics| {
        let name = serde_saphyr::from_str(text).ok().and_then(|outline| convert::outlined_name(kind, outline));
        let isolated = serde_saphyr::from_str(text).ok().and_then(|outline| convert::isolated(file, kind, outline));
        Rejected { file: Arc::clone(file), name, isolated: isolated.map(Box::new), diagnostics }
    })
}

/// The kind as the first line that looks like it says, or as an object of the API server does.
fn guess(text: &str) -> Option<Kind> {
    #[derive(serde::Deserialize)]
    struct Head {
        kind: String,
    }
    if text.trim_start().starts_with('{') {
        return serde_json::from_str::<Head>(text).ok().and_then(|head| Kind::from_name(&head.kind));
    }
    text.lines().find_map(|line| Kind::from_name(line.strip_prefix("kind:")?.trim()))
}

fn of_kind(file: &Arc<str>, text: &str, kind: Kind) -> Result<Policy, Vec<Diagnostic>> {
    match kind {
        Kind::SegmentationPolicy => convert::namespaced(file, object(file, text)?),
        Kind::ClusterSegmentationPolicy => convert::cluster(file, object(file, text)?),
    }
}

fn object<S: DeserializeOwned>(file: &Arc<str>, text: &str) -> Result<Object<S>, Vec<Diagnostic>> {
    serde_saphyr::from_str(text).map_err(|e| vec![yaml_fault(file, &e)])
}

/// What the YAML reader says, in our words where it is about our fields.
pub(crate) fn yaml_fault(file: &Arc<str>, error: &Error) -> Diagnostic {
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let at = match error.location() {
        Some(l) => At { value: (), line: number(l.line()), column: number(l.column()) },
        None => At { value: (), line: 0, column: 0 },
    };
    let (message, hint) = match error.without_snippet() {
        Error::SerdeUnknownField { field, expected, .. } => {
            (format!("`{field}` isn't a field here"), format!("known here: {}", expected.join(", ")))
        }
        Error::SerdeMissingField { field, .. } => {
            (format!("the field `{field}` is missing"), format!("add `{field}:` to this object"))
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            (format!("`{variant}` isn't a value here"), format!("one of {}", expected.join(", ")))
        }
        Error::SerdeInvalidType { unexpected, expected, .. } => {
            (format!("expected {expected}, not {unexpected}"), "see docs/policy.md for the form".to_owned())
        }
        other => {
            let text = other.to_string();
            // The reader adds its own position at the end; ours stands in front.
            let first = text.lines().next().unwrap_or_default().split(" at line ").next().unwrap_or_default();
            (first.to_owned(), "see docs/policy.md for the form".to_owned())
        }
    };
    at.diagnose(file, Severity::Error, message, hint)
}
