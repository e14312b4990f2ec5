//! The house rules as tests. Each says file and line, and what to do about it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/english.rs"]
mod english;
#[path = "tidy/names.rs"]
mod names;

/// Most lines of a file: one concept fits.
const LINES_MAX: usize = 800;
/// Most columns of a line.
const COLUMNS_MAX: usize = 120;
/// Our crates, and which of them each may depend on. `tests` may use nearly all; no crate needs it.
const EDGES: [(&str, &[&str]); 12] = [
    ("proto", &[]),
    ("ops", &[]),
    ("node", &["proto", "ops", "client"]),
    ("stores", &["proto", "node"]),
    ("coord", &["proto", "ops"]),
    ("client", &["proto"]),
    ("bench", &["proto", "ops", "client"]),
    ("cli", &["proto", "ops", "node", "stores", "coord", "client", "bench"]),
    ("engines/object-store", &["proto", "client"]),
    ("engines/sql", &["ops", "client", "object-store", "bench", "tests"]),
    ("python", &["client"]),
    ("tests", &["proto", "node", "coord", "client", "object-store", "cli", "bench"]),
];
/// Where memory is handled by hand, under a drawing of it; a file's folder has its details.
const UNSAFE_FILES: [&str; 7] = [
    "client/src/memory",
    "node/src/memory",
    "node/src/ring",
    "node/src/eventfd",
    "node/src/worker/allocations",
    "coord/src/store/lmdb",
    "python/src/memory",
];
/// Crates whose code handles its errors; elsewhere a failure is a panic.
const CAREFUL_CRATES: [&str; 7] =
    ["proto/src/", "ops/src/", "node/src/", "coord/src/", "client/src/", "cli/src/", "python/src/"];
/// What leaves before a merge. Written so that this file does not find itself.
const LEFTOVERS: [(&str, &str); 4] = [
    (concat!("FIX", "ME"), "mend it, or open an issue"),
    (concat!("db", "g!("), "use tracing"),
    (concat!("to", "do!("), "write it"),
    (concat!("unimpl", "emented!("), "write it"),
];
/// Folders of the machines that people work on.
const MACHINE_FOLDERS: [&str; 3] =
    [concat!("/", "work"), concat!("/", "root"), concat!("/", "home")];
/// Kinds of files that people write.
const TEXT_KINDS: [&str; 9] = ["rs", "toml", "md", "py", "sh", "yml", "yaml", "json", "txt"];

fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the workspace is above").to_owned()
}

/// A file of the workspace.
struct Source {
    /// Path below the workspace.
    path: String,
    text: String,
}

impl Source {
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    fn at(&self, line: usize, what: impl std::fmt::Display) -> String {
        format!("{}:{line}: {what}", self.path)
    }

    /// Returns code lines without comments, up to a test module at the end.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut test_attribute = false;
        self.lines()
            .take_while(move |(_, line)| {
                let is_module = line.trim_start().starts_with("mod ") && line.ends_with('{');
                let is_test_module = test_attribute && is_module;
                test_attribute = line.trim() == "#[cfg(test)]";
                !is_test_module
            })
            .map(|(number, line)| (number, line.split("//").next().unwrap_or_default()))
    }

    /// True if this is a module of unit tests, or a test of its own.
    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }
}

fn collect(folder: &Path, root: &Path, sources: &mut Vec<Source>) {
    let skipped = ["target", ".git", "__pycache__"];
    let mut entries: Vec<_> = std::fs::read_dir(folder)
        .expect("list a folder of the workspace")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if skipped.contains(&name) {
            continue;
        }
        if path.is_dir() && !path.is_symlink() {
            collect(&path, root, sources);
            continue;
        }
        let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
        if TEXT_KINDS.contains(&kind) {
            // An editor's file may be gone again.
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let path = path.strip_prefix(root).expect("below the workspace");
            sources.push(Source { path: path.display().to_string(), text });
        }
    }
}

fn sources() -> Vec<Source> {
    let root = workspace();
    let mut sources = Vec::new();
    collect(&root, &root, &mut sources);
    assert!(sources.len() > 20, "the workspace is there");
    sources
}

fn rust_sources() -> Vec<Source> {
    let mut sources = sources();
    sources.retain(|source| source.path.ends_with(".rs"));
    sources
}

fn is_word_byte(byte: Option<&u8>) -> bool {
    byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

/// True if `word` stands alone in `line`.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(index, _)| {
        let bytes = line.as_bytes();
        let before = index.checked_sub(1).and_then(|before| bytes.get(before));
        !is_word_byte(before) && !is_word_byte(bytes.get(index + word.len()))
    })
}

fn assert_tidy(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn dependencies_point_at_proto() {
    let mut problems = Vec::new();
    for (name, allowed) in EDGES {
        let path = format!("{name}/Cargo.toml");
        let text = std::fs::read_to_string(workspace().join(&path)).expect("read a manifest");
        let manifest: toml::Table = text.parse().expect("a manifest is TOML");
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(toml::Value::Table(table)) = manifest.get(section) else { continue };
            for dependency in table.keys() {
                let Some(other) = dependency.strip_prefix("millrace-") else { continue };
                if !allowed.contains(&other) {
                    let line = text.lines().position(|line| line.starts_with(dependency));
                    let line = line.unwrap_or(0) + 1;
                    problems.push(format!(
                        "{path}:{line}: {name} may depend on {allowed:?}, not on {other} ({section})"
                    ));
                }
            }
        }
    }
    assert_tidy(problems);
}

#[test]
fn unsafe_code_is_where_memory_is_drawn() {
    let mut problems = Vec::new();
    for source in rust_sources() {
        let module = source.path.trim_end_matches(".rs");
        let allowed = UNSAFE_FILES.iter().any(|allowed| {
            module
                .strip_prefix(allowed)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        if allowed || source.path == "tests/tidy.rs" {
            continue;
        }
        for (number, line) in source.lines() {
            let code = line.split("//").next().unwrap_or_default();
            if has_word(code, "unsafe") {
                problems.push(source.at(number, format!("unsafe is for {UNSAFE_FILES:?} only")));
            }
        }
    }
    assert_tidy(problems);
}

#[test]
fn files_open_with_what_they_own() {
    let problems = rust_sources()
        .iter()
        .filter(|source| !source.text.starts_with("//!"))
        .map(|source| source.at(1, "a file opens with //!: what it owns and what always holds"))
        .collect();
    assert_tidy(problems);
}

#[test]
fn files_hold_one_concept() {
    let mut problems = Vec::new();
    for source in rust_sources() {
        let count = source.lines().count();
        if count > LINES_MAX {
            problems.push(source.at(
                LINES_MAX + 1,
                format!("{count} lines, {LINES_MAX} are allowed: give details a file of their own"),
            ));
        }
    }
    assert_tidy(problems);
}

#[test]
fn lines_fit_the_screen() {
    let mut problems = Vec::new();
    for source in rust_sources() {
        for (number, line) in source.lines() {
            let columns = line.chars().count();
            if columns > COLUMNS_MAX {
                problems.push(
                    source.at(number, format!("{columns} columns, {COLUMNS_MAX} are allowed")),
                );
            }
        }
    }
    assert_tidy(problems);
}

#[test]
fn nothing_is_left_over() {
    let mut problems = Vec::new();
    for source in sources() {
        for (number, line) in source.lines() {
            for (leftover, advice) in LEFTOVERS {
                if line.contains(leftover) {
                    problems.push(
                        source.at(number, format!("{leftover} leaves before a merge: {advice}")),
                    );
                }
            }
        }
    }
    assert_tidy(problems);
}

#[test]
fn errors_are_handled_or_impossible_for_a_reason() {
    let mut problems = Vec::new();
    for source in rust_sources() {
        let careful = CAREFUL_CRATES.iter().any(|folder| source.path.starts_with(folder));
        if !careful || source.is_test() {
            continue;
        }
        for (number, line) in source.code() {
            if line.contains(".unwrap()") {
                problems.push(source.at(number, "use expect, with why it cannot fail"));
            }
        }
    }
    assert_tidy(problems);
}

#[test]
fn no_file_names_a_folder_of_one_machine() {
    let mut problems = Vec::new();
    for source in sources() {
        for (number, line) in source.lines() {
            for folder in MACHINE_FOLDERS {
                let is_named = line.match_indices(folder).any(|(index, _)| {
                    let bytes = line.as_bytes();
                    let before = index.checked_sub(1).and_then(|before| bytes.get(before));
                    let inside =
                        is_word_byte(before) || before.is_some_and(|byte| b".}*)".contains(byte));
                    !inside && bytes.get(index + folder.len()) == Some(&b'/')
                });
                if is_named {
                    problems.push(source.at(number, format!("{folder} is one machine's folder")));
                }
            }
        }
    }
    assert_tidy(problems);
}

#[test]
fn code_is_formatted() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let has_rustfmt = Command::new(&cargo)
        .args(["fmt", "--version"])
        .output()
        .is_ok_and(|out| out.status.success());
    if !has_rustfmt {
        println!("skipped: rustfmt is not installed");
        return;
    }
    let check = Command::new(cargo)
        .args(["fmt", "--all", "--check", "--", "--files-with-diff"])
        .current_dir(workspace())
        .output()
        .expect("run cargo fmt");
    let files = String::from_utf8_lossy(&check.stdout);
    let errors = String::from_utf8_lossy(&check.stderr);
    assert!(check.status.success(), "run `cargo fmt --all`:\n{files}{errors}");
}

#[test]
fn the_code_map_names_every_folder_of_code() {
    let Ok(readme) = std::fs::read_to_string(workspace().join("README.md")) else {
        println!("skipped: there is no README.md yet");
        return;
    };
    let folders: BTreeSet<String> = rust_sources()
        .iter()
        .filter_map(|source| source.path.split_once('/').map(|(folder, _)| folder.to_owned()))
        .collect();
    let problems = folders
        .iter()
        .filter(|folder| {
            !readme.contains(&format!("{folder}/")) && !readme.contains(&format!("`{folder}`"))
        })
        .map(|folder| format!("README.md:1: the code map does not name {folder}/"))
        .collect();
    assert_tidy(problems);
}
