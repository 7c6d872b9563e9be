//! Policy files and folders: read whole, and the last good text of each kept, so that a file that got damaged while
//! the agent was down doesn't take its policies out of force.

use super::state::State;
use crate::cluster::builtin;
use crate::policy::{self, Diagnostic, Document, PolicySet, Severity};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What one look at the files gave.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reading {
    /// By file name.
    pub texts: Texts,
    /// Files that are there, or should be, and can't be read: name and why.
    pub unreadable: BTreeMap<String, String>,
}

/// Under what names the agent stores the last good texts: those of users, and its own.
const STORED: [&str; 2] = ["policies.json", "built-in.json"];

/// Texts by file name.
pub type Texts = BTreeMap<Arc<str>, Arc<str>>;

/// Reads every file that the paths name. `before_reading` is called with each folder before it is read.
///
/// A file that is named by itself and is gone is unreadable; one that is gone from a folder was taken away on purpose.
pub fn read(paths: &[PathBuf], mut before_reading: impl FnMut(&Path)) -> Reading {
    let mut reading = Reading::default();
    for path in paths {
        if path.is_dir() {
            before_reading(path);
            match std::fs::read_dir(path) {
                Ok(entries) => {
                    for file in entries.flatten().map(|e| e.path()).filter(|p| is_policy(p)) {
                        reading.file(&file, true);
                    }
                }
                Err(e) => {
                    reading.unreadable.insert(path.display().to_string(), e.to_string());
                }
            }
        } else {
            if let Some(folder) = path.parent() {
                before_reading(folder);
            }
            reading.file(path, false);
        }
    }
    reading
}

fn is_policy(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|n| n.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|e| e == "yaml" || e == "yml")
}

impl Reading {
    fn file(&mut self, path: &Path, may_be_gone: bool) {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => {
                self.texts.insert(name.into(), text.into());
            }
            Err(e) if may_be_gone && e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => {
                self.unreadable.insert(name, e.to_string());
            }
        }
    }
}

/// What a text says.
type Read = (Arc<str>, Arc<[Document]>);

/// The policies in force, and what is wrong with the files.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    /// In force.
    pub set: PolicySet,
    /// About the files as they are now.
    pub findings: Vec<Diagnostic>,
    /// The last text of each file in which every document was good.
    pub good: Texts,
    /// What the present texts say, so that only those that changed are read again.
    read: BTreeMap<Arc<str>, Read>,
}

impl Policies {
    /// What was in force when the agent last ran.
    ///
    /// # Errors
    /// When the stored texts are there and can't be read.
    pub fn stored(state: &State) -> anyhow::Result<Self> {
        let mut good = Texts::new();
        for name in STORED {
            // Texts that aren't JSON any more are as good as none: the files themselves are read next.
            let texts = state.text(name)?.and_then(|t| serde_json::from_str::<Texts>(&t).ok());
            good.extend(texts.unwrap_or_default());
        }
        Ok(Self::restore(good))
    }

    /// What these texts say.
    pub fn restore(good: Texts) -> Self {
        let documents = good.iter().flat_map(|(file, text)| policy::read(file, text));
        let (set, _) = PolicySet::assemble(documents, &PolicySet::default());
        Self { set, good, ..Self::default() }
    }

    /// What is in force after this reading.
    #[must_use]
    pub fn after(self, reading: &Reading) -> Self {
        let Self { set: last, findings: _, mut good, mut read } = self;
        good.retain(|file, _| reading.texts.contains_key(file) || within(&reading.unreadable, file));
        let mut gone: BTreeMap<Arc<str>, Read> =
            read.extract_if(.., |file, _| !reading.texts.contains_key(file)).collect();
        for (file, text) in &reading.texts {
            // There may be thousands, of which one has changed.
            if read.get(file).is_some_and(|(known, _)| known == text) {
                continue;
            }
            let said: Read = (Arc::clone(text), policy::read(file, text).into());
            if said.1.iter().all(Result::is_ok) {
                good.insert(Arc::clone(file), Arc::clone(text));
            }
            read.insert(Arc::clone(file), said);
        }
        let (mut findings, mut kept) = (Vec::new(), BTreeMap::new());
        for (file, why) in &reading.unreadable {
            findings.push(Diagnostic {
                file: file.as_str().into(),
                line: 0,
                column: 0,
                severity: Severity::Error,
                message: format!("can't be read: {why}"),
                hint: Some("its last good form stays in force; put it back, or take it out of `policies`".to_owned()),
            });
        }
        for (file, text) in good.iter().filter(|(file, _)| !reading.texts.contains_key(*file)) {
            let said = gone.remove(file).filter(|(known, _)| known == text);
            let said = said.unwrap_or_else(|| (Arc::clone(text), policy::read(file, text).into()));
            kept.insert(Arc::clone(file), said);
        }
        let documents = read.values().chain(kept.values()).flat_map(|(_, documents)| documents.iter().cloned());
        let (set, more) = PolicySet::assemble(documents, &last);
        findings.extend(more);
        read.append(&mut kept);
        Self { set, findings, good, read }
    }
}

/// Stores the last good texts, but for what was stored already. The node's own are apart: they change with every pod.
///
/// # Errors
/// When they didn't reach the disk.
pub fn store(good: &Texts, stored: Option<&Texts>, state: &State) -> anyhow::Result<()> {
    for (name, own) in STORED.into_iter().zip([false, true]) {
        let part = |(file, _): &(&Arc<str>, &Arc<str>)| file.starts_with(builtin::PREFIX) == own;
        if stored.is_none_or(|stored| !good.iter().filter(part).eq(stored.iter().filter(part))) {
            state.put(name, &serde_json::to_vec(&good.iter().filter(part).collect::<BTreeMap<_, _>>())?)?;
        }
    }
    Ok(())
}

/// Whether a file is among these, or lies in a folder that is.
fn within(unreadable: &BTreeMap<String, String>, file: &str) -> bool {
    unreadable.keys().any(|u| u == file || Path::new(file).starts_with(u))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str) -> String {
        format!(
            "apiVersion: bulkhead.dev/v1alpha1\nkind: SegmentationPolicy\nmetadata: {{name: {name}}}\nspec:\n  \
             mode: enforce\n  selector: {{ids: [\"spiffe://t/{name}\"]}}\n  ingress: {{rules: []}}\n"
        )
    }

    fn names(p: &Policies) -> Vec<&str> {
        p.set.iter().map(|p| p.name.name.as_str()).collect()
    }

    #[test]
    fn a_damaged_file_keeps_its_last_good_form_over_a_restart() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("a.yaml");
        let paths = [dir.path().to_owned()];
        std::fs::write(&file, policy("a")).expect("written");
        std::fs::write(dir.path().join(".b.yaml.swp"), "not a policy").expect("written");
        let first = Policies::default().after(&read(&paths, |_| {}));
        assert_eq!((names(&first), first.findings.len()), (vec!["a"], 0), "{:?}", first.findings);

        std::fs::write(&file, policy("a").replace("ingress", "ingres")).expect("written");
        let second = first.clone().after(&read(&paths, |_| {}));
        assert_eq!(second.set, first.set);
        assert!(!second.findings.is_empty());
        let restarted = Policies::restore(second.good.clone()).after(&read(&paths, |_| {}));
        assert_eq!(restarted.set, first.set);

        std::fs::remove_file(&file).expect("removed");
        let third = restarted.after(&read(&paths, |_| {}));
        assert!(names(&third).is_empty() && third.good.is_empty());
    }

    #[test]
    fn only_what_changed_is_stored_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = State::open(dir.path(), "t").expect("a state");
        let mut good = Texts::from([("a.yaml".into(), policy("a").into()), ("built-in/x".into(), policy("x").into())]);
        store(&good, None, &state).expect("stored");
        let all = |state: &State| Policies::stored(state).expect("they can be read").good;
        assert_eq!(all(&state), good);
        state.drop_text("policies.json").expect("removed");
        let before = good.clone();
        good.insert("built-in/x".into(), policy("y").into());
        store(&good, Some(&before), &state).expect("stored");
        assert_eq!(all(&state), Texts::from([("built-in/x".into(), policy("y").into())]));
        store(&good, None, &state).expect("stored");
        assert_eq!(all(&state), good);
    }

    #[test]
    fn a_named_file_that_is_gone_stays_in_force() {
        let dir = tempfile::tempdir().expect("a folder");
        let paths = [dir.path().join("a.yaml")];
        std::fs::write(&paths[0], policy("a")).expect("written");
        let first = Policies::default().after(&read(&paths, |_| {}));
        std::fs::remove_file(&paths[0]).expect("removed");
        let mut folders = Vec::new();
        let second = first.clone().after(&read(&paths, |f| folders.push(f.to_owned())));
        assert_eq!(second.set, first.set);
        assert!(second.findings[0].to_string().contains("can't be read"));
        assert_eq!(folders, [dir.path()]);
    }
}
