//! What is said about a file, and where in it: errors that keep a policy out, and warnings about one that works but
//! may not mean what its author thinks.
//!
//! A line or column of 0 means that the place isn't known, as in an object that came from an API and not from a file.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_saphyr::Spanned;
use std::fmt;
use std::sync::Arc;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The document isn't taken.
    Error,
    /// The document is taken; somebody should look at it.
    Warning,
}

impl Severity {
    /// The word on the terminal.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One finding. Its `Display` is `file:line:column: severity: message (hint: …)`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Diagnostic {
    /// The file's name as the caller gave it.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// Whether the document isn't taken because of it.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}: {}", self.severity.as_str(), self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

/// A value and the place that it was written at. Equal when the values are: moving a rule doesn't change it.
#[derive(Clone, Copy, Debug)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
}

impl<T> At<T> {
    /// Another value at the same place.
    pub fn with<U>(&self, value: U) -> At<U> {
        At { value, line: self.line, column: self.column }
    }

    /// A finding about this place.
    pub fn diagnose(
        &self,
        file: &Arc<str>,
        severity: Severity,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Diagnostic {
        let hint = Some(hint.into()).filter(|h| !h.is_empty());
        Diagnostic {
            file: Arc::clone(file),
            line: self.line,
            column: self.column,
            severity,
            message: message.into(),
            hint,
        }
    }
}

impl<T> std::ops::Deref for At<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for At<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for At<T> {}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, defined: _ } = Spanned::<T>::deserialize(d)?;
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Self { value, line: number(referenced.line()), column: number(referenced.column()) })
    }
}

impl<T: schemars::JsonSchema> schemars::JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        T::json_schema(generator)
    }
}

impl<T: Serialize> Serialize for At<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_reads_like_a_compilers() {
        let at = At { value: (), line: 3, column: 7 };
        let d = at.diagnose(&"a.yaml".into(), Severity::Warning, "too broad", "name the ports");
        assert_eq!(d.to_string(), "a.yaml:3:7: warning: too broad (hint: name the ports)");
        let d = At { line: 0, ..at }.diagnose(&"a.yaml".into(), Severity::Error, "unreadable", "");
        assert_eq!(d.to_string(), "a.yaml: error: unreadable");
    }
}
