//! No files of a crate import each other in a circle.
//!
//! A file that imports a name depends on the file that defines it; what a file passes on by `pub use`
//! counts for the file that it came from. A file may always use what its parent has: the two are one
//! concept.

use std::collections::{BTreeMap, BTreeSet};

use super::{Source, assert_tidy, rust_sources};

/// A module of a crate, by the names that lead to it.
type Module = Vec<String>;
/// Which modules a module imports from, and which names.
type Imports = BTreeMap<Module, BTreeMap<Module, BTreeSet<String>>>;

/// The files of one crate.
struct Crate {
    /// The code of each module, without its unit tests.
    code: BTreeMap<Module, String>,
    /// What modules pass on: by module and name, where the name leads.
    passed_on: BTreeMap<(Module, String), Module>,
}

impl Crate {
    /// Reads the files below `root`, which ends with a slash, without their unit tests.
    fn new(root: &str, sources: &[Source]) -> Crate {
        let mut code = BTreeMap::new();
        for source in sources.iter().filter(|source| !source.is_test()) {
            let Some(path) = source.path.strip_prefix(root) else { continue };
            let path = path.trim_end_matches(".rs");
            let mut module: Module = path.split('/').map(str::to_owned).collect();
            if matches!(module.last().map(String::as_str), Some("lib" | "main" | "mod")) {
                module.pop();
            }
            let mut text = String::new();
            let mut is_skipped = false;
            for (_, line) in source.code() {
                // A test module that is not the last thing in the file.
                is_skipped |= line.starts_with("mod tests {");
                if !is_skipped {
                    text.push_str(line);
                    text.push('\n');
                }
                is_skipped &= line != "}";
            }
            code.insert(module, text);
        }
        let mut found = Crate { code, passed_on: BTreeMap::new() };
        let mut passed_on = BTreeMap::new();
        for (module, text) in &found.code {
            for (_, path) in uses(text).into_iter().filter(|(is_public, _)| *is_public) {
                if let Some(target) = found.absolute(module, &path)
                    && let Some(name) = target.last()
                {
                    passed_on.insert((module.clone(), name.clone()), target);
                }
            }
        }
        found.passed_on = passed_on;
        found
    }

    /// Returns a path of `module` as it is from the root of the crate; None if it leads elsewhere.
    fn absolute(&self, module: &Module, path: &[String]) -> Option<Module> {
        let ups = path.iter().take_while(|part| *part == "super").count();
        let base = match path.first()?.as_str() {
            "crate" => return Some(path[1..].to_vec()),
            "self" => return Some([module, &path[1..]].concat()),
            "super" => &module[..module.len().checked_sub(ups)?],
            first => {
                let child = [module.as_slice(), &[first.to_owned()]].concat();
                return self.code.contains_key(&child).then(|| [module, path].concat());
            }
        };
        Some([base, &path[ups..]].concat())
    }

    /// Returns the module that defines what a path leads to, and its name there.
    fn find(&self, path: &Module, depth: u32) -> Option<(Module, String)> {
        for length in (0..=path.len()).rev() {
            let module = path[..length].to_vec();
            if !self.code.contains_key(&module) {
                continue;
            }
            let name = path.get(length).cloned().unwrap_or_else(|| "(the module)".to_owned());
            let next = self.passed_on.get(&(module.clone(), name.clone()));
            if let Some(next) = next.filter(|next| *next != path && depth < 8) {
                return self.find(next, depth + 1);
            }
            return Some((module, name));
        }
        None
    }

    fn imports(&self) -> Imports {
        let mut imports = Imports::new();
        for (module, text) in &self.code {
            let used = uses(text).into_iter().filter(|(is_public, _)| !is_public);
            for path in used.map(|(_, path)| path).chain(inline_paths(text)) {
                let Some(path) = self.absolute(module, &path) else { continue };
                let Some((target, name)) = self.find(&path, 0) else { continue };
                // Parent and child are one concept.
                if !module.starts_with(&target) {
                    let names = imports.entry(module.clone()).or_default().entry(target);
                    names.or_default().insert(name);
                }
            }
        }
        imports
    }

    /// Returns one text for each circle: its files, and the names that tie them.
    fn circles(&self) -> Vec<String> {
        let imports = self.imports();
        let reached: BTreeMap<&Module, BTreeSet<&Module>> =
            self.code.keys().map(|module| (module, reached(&imports, module))).collect();
        let mut told = BTreeSet::new();
        let mut circles = Vec::new();
        for (module, others) in &reached {
            if !others.contains(module) || told.contains(module) {
                continue;
            }
            let circle: BTreeSet<&Module> =
                others.iter().copied().filter(|other| reached[other].contains(module)).collect();
            let mut ties = Vec::new();
            for (from, targets) in imports.iter().filter(|(from, _)| circle.contains(from)) {
                for (to, names) in targets.iter().filter(|(to, _)| circle.contains(to)) {
                    ties.push(format!("  {} uses {names:?} of {}", show(from), show(to)));
                }
            }
            told.extend(circle);
            circles.push(ties.join("\n"));
        }
        circles
    }
}

/// Returns the modules that can be reached from one by imports.
fn reached<'a>(imports: &'a Imports, module: &'a Module) -> BTreeSet<&'a Module> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![module];
    while let Some(next) = waiting.pop() {
        for target in imports.get(next).into_iter().flat_map(BTreeMap::keys) {
            if found.insert(target) {
                waiting.push(target);
            }
        }
    }
    found
}

fn show(module: &Module) -> String {
    if module.is_empty() { "the root".to_owned() } else { module.join("/") }
}

/// Returns the paths of all `use` items, and whether each is passed on.
fn uses(text: &str) -> Vec<(bool, Vec<String>)> {
    let mut found = Vec::new();
    for (index, _) in text.match_indices("use ") {
        let before = text[..index].rsplit('\n').next().unwrap_or_default().trim();
        let is_public = before.starts_with("pub");
        if !(before.is_empty() || is_public && !before.contains(' ')) {
            continue;
        }
        let Some(item) = text[index + 4..].split(';').next() else { continue };
        let mut paths = Vec::new();
        unfold(&[], item, &mut paths);
        found.extend(paths.into_iter().map(|path| (is_public, path)));
    }
    found
}

/// Takes a tree of imports apart: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn unfold(prefix: &[String], tree: &str, paths: &mut Vec<Vec<String>>) {
    let (head, group) = tree.split_once('{').map_or((tree, None), |(head, it)| (head, Some(it)));
    let head = head.split(" as ").next().unwrap_or_default();
    let parts = head.split("::").map(str::trim).filter(|part| !part.is_empty());
    let path: Vec<String> = prefix.iter().cloned().chain(parts.map(str::to_owned)).collect();
    let Some(group) = group else {
        if path.len() > prefix.len() {
            paths.push(path);
        }
        return;
    };
    let group = group.rsplit_once('}').map_or(group, |(inside, _)| inside);
    let (mut depth, mut start) = (0, 0);
    for (index, letter) in group.char_indices().chain([(group.len(), ',')]) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                unfold(&path, &group[start..index], paths);
                start = (index + 1).min(group.len());
            }
            _ => {}
        }
    }
}

/// Returns the paths in the code itself that begin with `crate::` or `super::`.
fn inline_paths(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for begin in ["crate::", "super::"] {
        for (index, _) in text.match_indices(begin) {
            let before = text[..index].chars().next_back();
            if before.is_some_and(|it| it.is_alphanumeric() || it == '_' || it == ':' || it == '$')
            {
                continue;
            }
            let is_path = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
            let path: String = text[index..].chars().take_while(|it| is_path(*it)).collect();
            found.push(path.split("::").filter(|it| !it.is_empty()).map(str::to_owned).collect());
        }
    }
    found
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let sources = rust_sources();
    let roots: BTreeSet<&str> = sources
        .iter()
        .filter_map(|source| source.path.find("/src/").map(|index| &source.path[..index + 5]))
        .chain(["tests/harness/", "tests/sim/", "tests/faults/"])
        .collect();
    assert!(roots.len() > 8, "{roots:?}");
    let mut problems = Vec::new();
    for root in roots {
        for circle in Crate::new(root, &sources).circles() {
            problems.push(format!("{root}: move what ties these files to the lowest:\n{circle}"));
        }
    }
    assert_tidy(problems);
}

#[test]
fn a_circle_is_found_and_told_by_what_ties_it() {
    let files = |files: &[(&str, &str)]| -> Vec<Source> {
        let source = |(path, text): &(&str, &str)| Source {
            path: format!("x/src/{path}"),
            text: (*text).to_owned(),
        };
        files.iter().map(source).collect()
    };
    let circles = |sources: &[Source]| Crate::new("x/src/", sources).circles();
    // By a name that a parent passes on, and by a path in the code.
    let found = circles(&files(&[
        ("lib.rs", "mod a;\nmod b;\n"),
        ("a.rs", "mod c;\npub(crate) use c::Deep;\nuse crate::b::{self, Other};\n"),
        ("a/c.rs", "fn f() { crate::b::call() }\n"),
        ("b.rs", "use crate::a::Deep;\n"),
    ]));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("b uses {\"Deep\"} of a/c"), "{found:?}");
    assert!(found[0].contains("a/c uses {\"call\"} of b"), "{found:?}");
    // A child and its parent are one concept, and tests may use anything.
    let found = circles(&files(&[
        ("lib.rs", "mod a;\nmod b;\n"),
        ("a.rs", "mod c;\nuse c::Deep;\n#[cfg(test)]\nmod tests {\n    use crate::b::Other;\n}\n"),
        ("a/c.rs", "use super::Shallow;\n"),
        ("b.rs", "// use crate::b;\nuse crate::a::Shallow;\n"),
    ]));
    assert!(found.is_empty(), "{found:?}");
}
