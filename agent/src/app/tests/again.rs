//! Looks that find nothing new.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_force_is_neither_compiled_nor_kept_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |p: &str| folder.path().join(p);
    for p in ["cgroup/s/web.service", "cgroup/s/db.service", "policies"] {
        std::fs::create_dir_all(at(p)).expect("a folder");
    }
    std::fs::write(at("policies/db.yaml"), POLICY).expect("written");
    let text = Rig::config_text(folder.path(), "audit");
    std::fs::write(at("bulkhead.yaml"), &text).expect("written");
    let config = crate::config::parse("bulkhead.yaml", &text).unwrap_or_else(|e| panic!("{}", e[0]));
    let state = State::open(&config.state, &config.instance).expect("a folder");
    let hierarchy = Hierarchy { mount: at("cgroup"), hybrid: false };
    let memory = Arc::new(Mutex::new(Memory::default()));
    let kernel = Fake { memory: Arc::clone(&memory), events: None };
    let mut engine = Engine::new(at("bulkhead.yaml"), config, hierarchy, state, kernel).expect("an engine");

    engine.first().await.unwrap_or_else(|e| panic!("{e}"));
    let first = engine.snapshot();
    engine.first().await.unwrap_or_else(|e| panic!("{e}"));
    let second = engine.snapshot();
    // The table of names is made by each compilation.
    assert!(Arc::ptr_eq(&first.names, &second.names), "it was compiled again");
    assert!(Arc::ptr_eq(&first.inventory, &second.inventory) && Arc::ptr_eq(&first.policies, &second.policies));

    // What couldn't be committed isn't in force, however often it is looked at.
    std::fs::write(at("policies/db.yaml"), POLICY.replace("5432", "5433")).expect("written");
    memory.lock().expect("no panic").refuse_commits = true;
    assert!(engine.first().await.is_err() && engine.first().await.is_err());
    memory.lock().expect("no panic").refuse_commits = false;
    engine.first().await.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(memory.lock().expect("no panic").images.len(), 2);
    // And back, to what was in force before the last.
    std::fs::write(at("policies/db.yaml"), POLICY).expect("written");
    engine.first().await.unwrap_or_else(|e| panic!("{e}"));
    let images = memory.lock().expect("no panic").images.clone();
    assert_eq!((images.len(), &images[2]), (3, &images[0]));
}
