//! Policies: how they are written, what they mean, and the tables that the kernel judges by.
//!
//! | module | what it is |
//! |---|---|
//! | [`document`] | the form of a file |
//! | [`parse`](mod@parse) | from a file's text to checked policies |
//! | [`convert`] | from documents to the model, all or nothing |
//! | [`model`] | the checked policies |
//! | [`overrides`] | what is decided above all policies |
//! | [`set`] | all of them together, and what becomes of those that weren't taken |
//! | [`compile`](mod@compile) | policies and inventory to an [`Image`](crate::image::Image) |
//! | [`reference`](mod@reference) | what policies mean, said as plainly as possible |
//! | [`check`](mod@check) | what may not be meant |
//! | [`explain`](mod@explain) | one flow judged, with the why |
//! | [`expiry`] | what stops to hold by itself |
//! | [`trial`] | tables of cases, and the rules that none of them touches |
//! | [`rules`] | the numbers by which the kernel names rules |
//!
//! Nothing here does I/O or names the kernel, a cluster or a clock.

pub mod check;
pub mod compile;
pub mod convert;
pub mod diagnostic;
pub mod document;
pub mod expiry;
pub mod explain;
pub mod model;
pub mod overrides;
pub mod parse;
pub mod pattern;
pub mod reference;
pub mod rules;
pub mod set;
pub mod trial;

pub use check::check;
pub use compile::{Compiled, Former, Warning, compile, compile_after};
pub use diagnostic::{At, Diagnostic, Severity};
pub use explain::{BESIDE_CNI, Explanation, Party, explain};
pub use model::{Mode, Policy, PolicyName};
pub use overrides::{Lowered, Overrides, Scope};
pub use parse::{Document, Rejected, parse, read};
pub use pattern::{ANY as ANY_ID, IdPattern};
pub use rules::{RuleRef, RuleTable, Section};
pub use set::PolicySet;

#[cfg(test)]
mod tests;
