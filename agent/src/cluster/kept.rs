//! What is kept of the objects of one kind: of each what matters, taken out once when it comes.
//!
//! A list replaces the content at once, so half of one is never seen. An object that comes again in the version that is
//! there already isn't taken out again, and one of which nothing that matters changed is no change: nodes tell of
//! themselves all the time.

use kube::Resource;
use kube::runtime::watcher::Event;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Namespace (empty: none) and name.
type Key = (String, String);

/// What is kept of each object. Clones share it.
pub struct Kept<T>(Arc<Mutex<Held<T>>>);

struct Held<T> {
    objects: BTreeMap<Key, One<T>>,
    /// A list that isn't complete yet.
    coming: BTreeMap<Key, One<T>>,
}

struct One<T> {
    version: Option<String>,
    taken: Arc<T>,
}

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Held { objects: BTreeMap::new(), coming: BTreeMap::new() })))
    }
}

impl<T: PartialEq> Kept<T> {
    fn held(&self) -> MutexGuard<'_, Held<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything, in the order of namespaces and names.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.held().objects.values().map(|one| Arc::clone(&one.taken)).collect()
    }

    /// What is kept of the object of that name; the namespace of those that have none is empty.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        let key = (namespace.to_owned(), name.to_owned());
        self.held().objects.get(&key).map(|one| Arc::clone(&one.taken))
    }

    /// The first that fits.
    pub fn find(&self, fits: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        self.held().objects.values().find(|one| fits(&one.taken)).map(|one| Arc::clone(&one.taken))
    }

    /// Takes in what a watch tells. Gives whether the content may differ now.
    pub(super) fn take<K: Resource>(&self, event: Event<K>, mut take: impl FnMut(K) -> T) -> bool {
        match event {
            Event::Init => self.held().coming.clear(),
            Event::InitApply(object) => {
                let (key, version) = (key(&object), object.meta().resource_version.clone());
                let same = |one: &&One<T>| version.is_some() && one.version == version;
                let known = self.held().objects.get(&key).filter(same).map(|one| Arc::clone(&one.taken));
                let taken = known.unwrap_or_else(|| Arc::new(take(object)));
                self.held().coming.insert(key, One { version, taken });
            }
            Event::InitDone => {
                let mut held = self.held();
                held.objects = std::mem::take(&mut held.coming);
                return true;
            }
            Event::Apply(object) => {
                let (key, version) = (key(&object), object.meta().resource_version.clone());
                let taken = take(object);
                let mut held = self.held();
                match held.objects.get_mut(&key) {
                    Some(one) if *one.taken == taken => one.version = version,
                    _ => {
                        held.objects.insert(key, One { version, taken: Arc::new(taken) });
                        return true;
                    }
                }
            }
            Event::Delete(object) => return self.held().objects.remove(&key(&object)).is_some(),
        }
        false
    }
}

fn key<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Namespace;
    use kube::api::ObjectMeta;

    fn object(name: &str, version: &str) -> Namespace {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            resource_version: Some(version.to_owned()),
            ..ObjectMeta::default()
        };
        Namespace { metadata, ..Namespace::default() }
    }

    #[test]
    fn a_list_counts_when_it_is_whole_and_takes_nothing_out_twice() {
        let kept = Kept::default();
        let mut taken = Vec::new();
        let mut tell = |event| {
            kept.take(event, |o: Namespace| {
                taken.push(o.metadata.name.clone());
                o.metadata.resource_version.unwrap_or_default()
            })
        };
        assert!(tell(Event::Apply(object("a", "1"))) && tell(Event::Apply(object("b", "2"))));
        for event in [Event::Init, Event::InitApply(object("a", "1")), Event::InitApply(object("c", "3"))] {
            assert!(!tell(event), "it isn't whole yet");
        }
        assert!(kept.get("", "b").is_some() && kept.get("", "c").is_none());
        assert!(tell(Event::InitDone));
        assert!(tell(Event::Apply(object("c", "4"))));
        assert!(!tell(Event::Apply(object("c", "4"))), "nothing that matters changed");
        assert!(tell(Event::Delete(object("a", "1"))) && !tell(Event::Delete(object("a", "1"))));
        let all: Vec<String> = kept.all().iter().map(|version| version.to_string()).collect();
        assert_eq!(all, ["4"]);
        let names: Vec<_> = taken.iter().flatten().map(String::as_str).collect();
        assert_eq!(names, ["a", "b", "c", "c", "c"]);
    }
}
