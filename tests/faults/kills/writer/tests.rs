//! What a crash may leave, and what it may not.

use super::*;

fn create(name: &str) -> Write {
    Write::Create { name: name.to_owned(), data: name.as_bytes().to_vec() }
}

fn nodes(names: &[&str]) -> Nodes {
    names.iter().map(|name| ((*name).to_owned(), name.as_bytes().to_vec())).collect()
}

/// Checks whether these nodes may be found after `a` was acknowledged and `b`, `c`, no `a` were sent.
#[track_caller]
fn check(found: &[&str], expected: bool) {
    let mut writer = Writer::new(0, fastrand::Rng::with_seed(1));
    writer.nodes = nodes(&["a"]);
    writer.unanswered = [create("b"), create("c"), Write::Delete { name: "a".to_owned() }].into();
    assert_eq!(writer.settle(nodes(found)).is_ok(), expected, "{found:?}");
}

#[test]
fn any_first_part_of_what_was_sent_may_be_found_but_no_other() {
    check(&["a"], true);
    check(&["a", "b"], true);
    check(&["a", "b", "c"], true);
    check(&["b", "c"], true);
    check(&[], false);
    check(&["b"], false);
    check(&["a", "c"], false);
    check(&["a", "b", "c", "d"], false);
}
