//! A name of a type has one meaning in its crate: it is declared once.
//!
//! Leaves out unit tests, what is declared within something else, and names that are imported.

use std::collections::BTreeMap;

use super::{Source, assert_tidy, rust_sources};

/// Crates whose names are kept apart.
const CRATES: [&str; 8] = ["proto", "ops", "node", "stores", "coord", "client", "bench", "cli"];
/// Names that a crate declares twice on purpose.
const TWICE: [(&str, &str); 2] = [
    // The same thing, for async callers and for those that block.
    ("client", "Client"),
    ("client", "Reader"),
];

/// Returns the type that a line declares, if it declares one that is not within something else.
fn declared(line: &str) -> Option<&str> {
    let line = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(')')?.1.trim_start(),
        Some(rest) => rest.trim_start(),
        None => line,
    };
    let (keyword, rest) = line.split_once(' ')?;
    let is_declaration = ["struct", "enum", "union", "trait", "type"].contains(&keyword);
    let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
    is_declaration.then(|| &rest[..end.unwrap_or(rest.len())])
}

/// Returns the names that the files below `root` declare more than once, each with where that is.
fn declared_twice(root: &str, sources: &[Source]) -> Vec<(String, Vec<String>)> {
    let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let of_crate =
        sources.iter().filter(|source| source.path.starts_with(root) && !source.is_test());
    for source in of_crate {
        for (number, line) in source.code() {
            if let Some(name) = declared(line) {
                places.entry(name).or_default().push(format!("{}:{number}", source.path));
            }
        }
    }
    let twice = places.into_iter().filter(|(_, places)| places.len() > 1);
    twice.map(|(name, places)| (name.to_owned(), places)).collect()
}

#[test]
fn a_type_name_has_one_meaning_in_its_crate() {
    let sources = rust_sources();
    let mut problems = Vec::new();
    for name in CRATES {
        for (declared, places) in declared_twice(&format!("{name}/src/"), &sources) {
            if !TWICE.contains(&(name, declared.as_str())) {
                problems.push(format!(
                    "{}: {declared} has more than one meaning: name each for what it is",
                    places.join(", ")
                ));
            }
        }
    }
    assert_tidy(problems);
}

#[test]
fn declarations_are_found() {
    let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let sources = [
        source("a/src/one.rs", "pub struct Both<T>(T);\npub(crate) enum Once {}\n"),
        source(
            "a/src/two.rs",
            "type Both = u8;\nstruct Bother;\nimpl X for Y {\n    type Once = u8;\n}\n",
        ),
        source("a/src/tests.rs", "struct Once;\n"),
        source("b/src/lib.rs", "pub(in crate::x) union Once { a: u8 }\n"),
    ];
    let places = ["a/src/one.rs:1", "a/src/two.rs:1"].map(str::to_owned).to_vec();
    assert_eq!(declared_twice("a/src/", &sources), [("Both".to_owned(), places)]);
    assert_eq!(declared("pub(in crate::x) union Once { a: u8 }"), Some("Once"));
    assert_eq!(declared("    struct Inner;"), None);
    assert_eq!(declared("let type_of = 1;"), None);
}
