//! A quick form of the corpus.

use super::*;

#[test]
fn what_was_seen_is_allowed_and_what_was_not_is_named() {
    let estates = generate::estates(7, true);
    let scores: Vec<Score> = estates.iter().map(|e| score::score(e).expect("a score")).collect();
    assert!(scores.len() >= 18);
    for s in &scores {
        assert!(s.is_good(), "{s:#?}");
        assert!(s.precision > 0.99, "{s:#?}");
    }
    // What runs outside the window only is denied, and said to be; so is what ran once in it.
    let cron = scores.iter().find(|s| s.estate == "cron").expect("it is one of them");
    assert_eq!(cron.uncovered.len(), 4, "{cron:?}");
    assert!(scores.iter().all(|s| !s.uncovered.is_empty()), "each has traffic outside the window: {scores:#?}");
    assert!(cron.recall < 1.0 && cron.recall > 0.5, "{cron:?}");
    let rotating = scores.iter().find(|s| s.estate == "outside-rotating").expect("it is one of them");
    assert_eq!(rotating.uncovered.len(), 1, "addresses that come later are covered: {rotating:?}");
}

#[test]
fn the_same_seed_gives_the_same_estates() {
    let texts = |seed| -> Vec<String> {
        let estates = generate::estates(seed, true);
        estates.iter().map(|e| serde_json::to_string(&e.seen).expect("plain data")).collect()
    };
    assert_eq!(texts(3), texts(3));
    assert_ne!(texts(3), texts(4));
}

#[test]
fn a_suggestion_that_denies_what_was_seen_is_found_out() {
    // A dependency that was seen once and counts as a slip is named; one that never was, and never comes, isn't.
    let mut estate = generate::estates(7, true).swap_remove(0);
    let first = estate.dependencies.first().cloned().expect("one");
    estate.dependencies.insert(estate::Dependency { port: 1, ..first });
    let score = score::score(&estate).expect("a score");
    assert_eq!((score.false_denies, score.unnamed.len(), score.is_good()), (0, 1, false), "{score:?}");
}
