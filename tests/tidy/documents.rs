//! What documents say of files: the paths of the code maps, and the links between pages.
//!
//! Always holds: every path that a code map names exists, and every relative link of a page leads to a
//! file, and to a heading of it where the link names one. Pages elsewhere on the web are not checked.

use std::path::Path;

use super::{Source, assert_tidy, sources, workspace};

/// Documents with a code map: a section of this heading, of whatever depth its tables are.
const CODE_MAPS: [&str; 2] = ["README.md", "docs/ARCHITECTURE.md"];
const CODE_MAP: &str = "## Code map";

/// A path that a code map names.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    line: usize,
    /// As it is written.
    text: String,
    /// The folder of the first path of its line, which the others may be beside.
    beside: String,
}

impl Named {
    /// True if the path is there, from the workspace or beside the first one of its line.
    fn exists(&self, is_there: impl Fn(&str) -> bool) -> bool {
        is_there(&self.text) || is_there(&format!("{}/{}", self.beside, self.text))
    }
}

/// Returns lines with their numbers, without those of code blocks.
pub(super) fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        (!is_code && !is_fence).then_some((index + 1, line))
    })
}

/// True if a word in backticks is meant as a path and not as code.
fn is_path(word: &str) -> bool {
    let is_plain = word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte));
    let has_kind = [".rs", ".md", ".toml", ".py"].iter().any(|kind| word.ends_with(kind));
    is_plain && !word.starts_with('/') && (has_kind || word.contains('/'))
}

/// Returns the paths in the code map of a document.
fn named_paths(text: &str) -> Vec<Named> {
    let section = prose(text)
        .skip_while(|(_, line)| *line != CODE_MAP)
        .skip(1)
        .take_while(|(_, line)| !line.starts_with("## "));
    let mut named = Vec::new();
    for (line, text) in section {
        // Every second part stands between backticks.
        let words = text.split('`').skip(1).step_by(2).filter(|word| is_path(word));
        let mut beside = String::new();
        for word in words {
            if beside.is_empty() {
                let folder = word.trim_end_matches('/').rsplit_once('/');
                beside = folder.map_or(word, |(folder, _)| folder).to_owned();
            }
            named.push(Named { line, text: word.to_owned(), beside: beside.clone() });
        }
    }
    named
}

/// A link of a page to another place of the workspace.
#[derive(Debug, PartialEq, Eq)]
struct Link {
    line: usize,
    /// As it is written; empty for the page itself.
    file: String,
    heading: Option<String>,
}

/// Returns the relative links of a page.
fn links(text: &str) -> Vec<Link> {
    let mut links = Vec::new();
    for (line, text) in prose(text) {
        // What stands between backticks is not a link.
        let text: String = text.split('`').step_by(2).collect();
        for part in text.split("](").skip(1) {
            let Some((target, _)) = part.split_once(')') else { continue };
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, heading) = match target.split_once('#') {
                Some((file, heading)) => (file, Some(heading.to_owned())),
                None => (target, None),
            };
            links.push(Link { line, file: file.to_owned(), heading });
        }
    }
    links
}

/// Returns the name that links use for a heading, as the usual renderers of Markdown make it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().chars().filter_map(|letter| match letter {
        ' ' => Some('-'),
        '-' | '_' => Some(letter),
        _ => letter.is_alphanumeric().then(|| letter.to_ascii_lowercase()),
    });
    kept.collect()
}

/// Returns the names that links may use for the headings of a page.
fn anchors(text: &str) -> Vec<String> {
    prose(text).filter(|(_, line)| line.starts_with('#')).map(|(_, line)| anchor(line)).collect()
}

/// Returns what is wrong with the links of a page. `read` returns the text of a file, an empty text for
/// a folder, and `None` where there is neither.
fn broken_links(page: &Source, read: impl Fn(&Path) -> Option<String>) -> Vec<String> {
    let folder = Path::new(&page.path).parent().unwrap_or(Path::new(""));
    let broken = |link: Link| {
        let Link { line, file, heading } = link;
        let text = match file.as_str() {
            "" => Some(page.text.clone()),
            _ => read(&folder.join(&file)),
        };
        let Some(text) = text else {
            return Some(page.at(line, format!("the link leads nowhere: there is no {file}")));
        };
        let heading = heading?;
        let is_there = anchors(&text).contains(&heading);
        let place = if file.is_empty() { "this page" } else { file.as_str() };
        (!is_there).then(|| page.at(line, format!("{place} has no heading #{heading}")))
    };
    links(&page.text).into_iter().filter_map(broken).collect()
}

#[test]
fn paths_of_the_code_maps_exist() {
    let root = workspace();
    let mut problems = Vec::new();
    for path in CODE_MAPS {
        let text = std::fs::read_to_string(root.join(path)).expect("read a document");
        let named = named_paths(&text);
        if named.is_empty() {
            problems.push(format!("{path}:1: the section `{CODE_MAP}` names no path"));
        }
        for named in named {
            if !named.exists(|path| root.join(path).exists()) {
                let Named { line, text, beside } = named;
                problems.push(format!(
                    "{path}:{line}: the code map names {text}, which is neither there nor in {beside}/"
                ));
            }
        }
    }
    assert_tidy(problems);
}

#[test]
fn links_of_documents_lead_somewhere() {
    let root = workspace();
    let read = |path: &Path| match root.join(path) {
        path if path.is_dir() => Some(String::new()),
        path => std::fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
    };
    let pages = sources().into_iter().filter(|source| source.path.ends_with(".md"));
    assert_tidy(pages.flat_map(|page| broken_links(&page, read)).collect());
}

#[test]
fn a_path_that_is_not_there_is_found() {
    let text = "`a/gone.rs`\n## Code map\n```\n`b/gone.rs`\n```\n\
                | `node/src/one.rs` `one/` `two.rs` | `one/deep.rs`, `handle(now)`, `zk://` |\n\
                ## Later\n`c/gone.rs`\n";
    let named = named_paths(text);
    let names: Vec<&str> = named.iter().map(|named| named.text.as_str()).collect();
    assert_eq!(names, ["node/src/one.rs", "one/", "two.rs", "one/deep.rs"]);
    let there = ["node/src/one.rs", "node/src/one/", "node/src/one/deep.rs"];
    let missing: Vec<(usize, &str)> = named
        .iter()
        .filter(|named| !named.exists(|path| there.contains(&path)))
        .map(|named| (named.line, named.text.as_str()))
        .collect();
    assert_eq!(missing, [(6, "two.rs")]);
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let page = Source {
        path: "docs/A.md".to_owned(),
        text: "# A page\n[B](B.md#what-it-is-and-how) [itself](#a-page) [no](#b) ![](c.svg)\n\
               `[no](link.md)` [web](https://example.org/x#y)\n```\n[no](link.md)\n```\n\
               [gone](GONE.md) [B](B.md#gone) [up](../README.md)\n"
            .to_owned(),
    };
    let read = |path: &Path| match path.to_str() {
        Some("docs/B.md") => Some("## What it is, and how\n".to_owned()),
        Some("docs/c.svg" | "docs/../README.md") => Some(String::new()),
        _ => None,
    };
    assert_eq!(
        broken_links(&page, read),
        [
            "docs/A.md:2: this page has no heading #b",
            "docs/A.md:7: the link leads nowhere: there is no GONE.md",
            "docs/A.md:7: B.md has no heading #gone",
        ]
    );
}
