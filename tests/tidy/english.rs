//! What a machine can see of the rules of plain English in `docs/HACKING.md`.
//!
//! Always holds: the words in the lists below are wrong almost wherever they stand, so a text that
//! meets them is rewritten and no exception is added. Quotations in backticks and blocks of code are not
//! read. The rest of the rules is left to reviews.

use std::process::Command;

use super::documents::prose;
use super::{Source, assert_tidy, sources, workspace};

/// Words that are for people only.
const PERSONAL: &str = "who whom whoever nobody somebody anybody everybody";
/// Words after which a personal one is right.
const PEOPLE: &str = "\
    user users operator operators reader readers programmer programmers person people someone \
    anyone";
/// Plural nouns and pronouns, which look like verbs in the third person.
const NOT_VERBS: &str = "\
    addresses arguments as blocks bytes clients columns connections cores counters days \
    directories entries errors faults files flags groups headers histories hosts is its keys \
    lines medians members messages microseconds milliseconds misses nanoseconds nodes operations \
    others owners pages paths peers ports processors ranges replicas schemes seconds sectors \
    sessions settings sizes status texts this threads values";
/// Older commits are history: the rule of subjects is younger.
const FIRST_COMMIT: &str = "5e4b5e808c76e5984db15941431365abdab8d606";
const SUBJECT_MAX: usize = 72;

/// A phrase for which there is a commoner one.
struct Phrase {
    words: &'static str,
    say: &'static str,
    /// It is right after these words, and before those.
    fine_after: &'static [&'static str],
    fine_before: &'static [&'static str],
}

const PHRASES: [Phrase; 6] = [
    Phrase {
        words: "is no",
        say: "is not a",
        fine_after: &["there", "here"],
        fine_before: &["longer", "more", "less", "later", "earlier", "larger", "smaller"],
    },
    Phrase { words: "anew", say: "again", fine_after: &[], fine_before: &[] },
    Phrase {
        words: "all the same",
        say: "still",
        fine_after: &["is", "are", "be", "were"],
        fine_before: &[],
    },
    Phrase {
        words: "is well",
        say: "is healthy",
        fine_after: &[],
        fine_before: &["above", "below", "within", "under", "over", "formed", "known"],
    },
    Phrase { words: "so many", say: "this many", fine_after: &[], fine_before: &[] },
    Phrase { words: "not wanted", say: "must not", fine_after: &[], fine_before: &[] },
];

/// A word of a text and its line.
type Word = (usize, String);

/// Adds the words of a line, without what stands in backticks.
fn add_words(words: &mut Vec<Word>, line: usize, text: &str) {
    let plain =
        text.split('`').enumerate().map(|(index, part)| if index % 2 == 0 { part } else { "_" });
    let plain: String = plain.collect();
    words.extend(plain.split_whitespace().map(|word| (line, word.to_lowercase())));
}

/// Returns the paragraphs of a page. Tables of the protocol are left out: they hold field names.
fn paragraphs(page: &Source) -> Vec<Vec<Word>> {
    let mut found = vec![Vec::new()];
    for (line, text) in prose(&page.text) {
        if text.trim().is_empty() {
            found.push(Vec::new());
        } else if !(text.starts_with('|') && page.path.ends_with("PROTOCOL.md")) {
            add_words(found.last_mut().expect("one at least"), line, text);
        }
    }
    found
}

/// Returns the comments and the string literals of a file; comments on lines in a row are one text.
fn comments_and_strings(code: &str) -> Vec<Vec<Word>> {
    let mut found: Vec<Vec<Word>> = Vec::new();
    let (mut line, mut comment_line) = (1, 0);
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let length;
        if rest.starts_with("//") {
            length = rest.find('\n').unwrap_or(rest.len());
            if found.is_empty() || comment_line + 1 != line {
                found.push(Vec::new());
            }
            comment_line = line;
            let text = rest[..length].trim_start_matches(['/', '!']);
            add_words(found.last_mut().expect("one at least"), line, text);
        } else if let Some(hashes) = raw_string(rest) {
            let end = format!("\"{}", "#".repeat(hashes));
            let begin = hashes + 2;
            length = rest[begin..].find(&end).map_or(rest.len(), |at| begin + at + end.len());
        } else if first == '"' {
            length = string_length(rest);
            let mut words = Vec::new();
            for (index, text) in rest[1..length - 1].split('\n').enumerate() {
                add_words(&mut words, line + index, &text.replace("\\n", " "));
            }
            // A text of one word is data.
            if words.len() > 1 {
                found.push(words);
            }
            comment_line = 0;
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            length = if rest.starts_with("'\"'") { 3 } else { 4 };
        } else {
            length = first.len_utf8();
        }
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    found
}

/// Returns how many hashes open a raw string, if one begins here.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    let hashes = after.bytes().take_while(|byte| *byte == b'#').count();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// Returns the length of a string literal with its quotation marks.
fn string_length(text: &str) -> usize {
    let mut is_escaped = false;
    for (index, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            b'"' if !is_escaped => return index + 1,
            _ => is_escaped = byte == b'\\' && !is_escaped,
        }
    }
    text.len()
}

/// True if a word is in a list, whose words have spaces between them.
fn is_one_of(word: &str, list: &str) -> bool {
    list.split(' ').any(|it| it == word)
}

/// Returns what the words of one text break of the rules: by line, with the word to use.
fn wrong_words(words: &[Word]) -> Vec<(usize, String)> {
    let bare = |word: &str| word.trim_matches(|it: char| !it.is_alphanumeric()).to_owned();
    let neighbour = |index: Option<usize>| {
        index.and_then(|it| words.get(it)).map_or(String::new(), |(_, word)| bare(word))
    };
    let mut wrong = Vec::new();
    for (index, (line, word)) in words.iter().enumerate() {
        let before = neighbour(index.checked_sub(1));
        // A part of a path and a place for a value are not words.
        if is_one_of(&bare(word), PERSONAL)
            && !is_one_of(&before, PEOPLE)
            && !word.contains(['/', '{'])
        {
            wrong.push((
                *line,
                format!("`{}` is for people: name the node or the client", bare(word)),
            ));
        }
        for phrase in &PHRASES {
            let count = phrase.words.split(' ').count();
            let Some(these) = words.get(index..index + count) else { continue };
            // Inside of the phrase no sentence ends.
            let text: Vec<&str> = these.iter().map(|(_, word)| word.as_str()).collect();
            let text = text.join(" ");
            let text = text.trim_matches(|it: char| !it.is_alphanumeric());
            let after = neighbour(Some(index + count));
            let is_fine = phrase.fine_after.contains(&before.as_str())
                || phrase.fine_before.contains(&after.as_str());
            if text == phrase.words && !is_fine {
                wrong.push((*line, format!("`{}`: say `{}`", phrase.words, phrase.say)));
            }
        }
    }
    wrong
}

/// What a doc comment describes, as far as a rule is about it.
#[derive(Debug, PartialEq, Eq)]
enum Item {
    Function,
    /// A function that returns a bool.
    Question,
    /// A field or constant that is a bool.
    Flag,
    Other,
}

/// Returns each doc comment of a file: its first line, its text, and what it describes.
fn documented(source: &Source) -> Vec<(usize, String, Item)> {
    let mut found = Vec::new();
    let mut lines = source.lines().peekable();
    while let Some((line, first)) = lines.next() {
        let Some(text) = first.trim().strip_prefix("///") else { continue };
        let mut text = text.trim().to_owned();
        while let Some(next) = lines.peek().and_then(|(_, next)| next.trim().strip_prefix("///")) {
            text = format!("{text} {}", next.trim());
            lines.next();
        }
        let mut attributes = String::new();
        let open = |text: &str| text.matches('[').count() > text.matches(']').count();
        while let Some((_, next)) = lines.peek()
            && (next.trim().starts_with("#[") || open(&attributes))
        {
            attributes.push_str(next);
            lines.next();
        }
        let mut item = String::new();
        for (_, next) in lines.by_ref() {
            item.push_str(next.trim());
            item.push(' ');
            if !is_function(&item) || next.ends_with(['{', ';', '}']) {
                break;
            }
        }
        // The text of an option of the command line is help, and says what the option does.
        let item = if attributes.contains("#[arg") { Item::Other } else { item_of(&item) };
        found.push((line, text, item));
    }
    found
}

fn is_function(item: &str) -> bool {
    let is_before = |word: &&str| {
        word.starts_with("pub") || ["const", "async", concat!("un", "safe")].contains(word)
    };
    item.split_whitespace().find(|word| !is_before(word)) == Some("fn")
}

fn item_of(item: &str) -> Item {
    let item = item.trim();
    if is_function(item) {
        let signature = item.split(" {").next().unwrap_or_default().trim_end_matches(';');
        let result = signature.rsplit_once("-> ").map_or("", |(_, result)| result);
        let result = result.split(" where").next().unwrap_or_default().trim();
        return if result == "bool" { Item::Question } else { Item::Function };
    }
    let is_flag =
        item.ends_with(": bool,") || item.contains(": bool = ") && item.contains("const ");
    if is_flag { Item::Flag } else { Item::Other }
}

/// Returns what is wrong with the beginning of a doc comment.
fn wrong_beginning(text: &str, item: &Item) -> Option<&'static str> {
    let is_true = ["True if ", "True when ", "True while "].iter().any(|it| text.starts_with(it));
    match item {
        Item::Question => {
            // One that does something says that first.
            let says_when =
                ["rue if ", "rue when ", "rue while "].iter().any(|it| text.contains(it));
            (!(is_true || begins_with_verb(text) && says_when))
                .then_some("the doc of a function that returns a bool begins with `True if`")
        }
        Item::Flag => (!is_true).then_some("the doc of a bool begins with `True if`"),
        Item::Function => (!begins_with_verb(text))
            .then_some("the doc of a function begins with a verb: Returns, Builds, Waits for"),
        Item::Other => None,
    }
}

/// True if a text begins with a verb in the third person, or refers to another item.
fn begins_with_verb(text: &str) -> bool {
    let mut words = text.split_whitespace();
    let first = words.next().unwrap_or_default().trim_end_matches(['.', ',', ':', ';']);
    let second = words.next().unwrap_or_default();
    let is_verb = first.starts_with(|it: char| it.is_ascii_uppercase())
        && first.bytes().skip(1).all(|byte| byte.is_ascii_lowercase())
        && first.ends_with('s')
        && !is_one_of(&first.to_ascii_lowercase(), NOT_VERBS)
        // *Names of members* has no verb.
        && second != "of";
    is_verb || ["As", "See"].contains(&first) && second.starts_with("[`")
}

/// Returns what is wrong with the text of a file.
fn problems(source: &Source) -> Vec<String> {
    let is_page = source.path.ends_with(".md");
    let texts = if is_page { paragraphs(source) } else { comments_and_strings(&source.text) };
    let mut wrong: Vec<(usize, String)> = texts.iter().flat_map(|it| wrong_words(it)).collect();
    if !is_page {
        let beginnings = documented(source).into_iter();
        wrong.extend(beginnings.filter_map(|(line, text, item)| {
            wrong_beginning(&text, &item).map(|what| (line, what.to_owned()))
        }));
    }
    wrong.sort();
    wrong.into_iter().map(|(line, what)| source.at(line, what)).collect()
}

/// Returns what is wrong with the subject of a commit.
fn wrong_subject(subject: &str) -> Option<&'static str> {
    if subject.chars().count() > SUBJECT_MAX {
        Some("a subject has at most 72 characters; the body has room for more")
    } else if !subject.starts_with(char::is_uppercase) {
        Some("a subject begins with a capital letter")
    } else {
        subject.ends_with('.').then_some("a subject ends without a full stop")
    }
}

/// Returns what git prints, or None if it fails.
fn git(arguments: &[&str]) -> Option<String> {
    let out = Command::new("git").args(arguments).current_dir(workspace()).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

#[test]
fn texts_are_plain_english() {
    let read = |source: &Source| {
        let is_text = source.path.ends_with(".rs") || source.path.ends_with(".md");
        // This file has the wrong words in its tests.
        is_text && source.path != "tests/tidy/english.rs"
    };
    assert_tidy(sources().iter().filter(|it| read(it)).flat_map(problems).collect());
}

#[test]
fn subjects_of_commits_are_short_and_begin_with_a_capital() {
    let is_whole =
        git(&["rev-parse", "--is-shallow-repository"]).is_some_and(|it| it.trim() == "false");
    if !is_whole {
        println!("skipped: this is not a whole clone of the repository");
        return;
    }
    if git(&["merge-base", "--is-ancestor", FIRST_COMMIT, "HEAD"]).is_none() {
        println!("skipped: the history does not hold the commit that the rule begins with");
        return;
    }
    let range = format!("{FIRST_COMMIT}..HEAD");
    let log =
        git(&["log", "--no-merges", "--format=%h %s", &range]).expect("the log of a repository");
    let wrong = |line: &str| {
        let (_, subject) = line.split_once(' ').unwrap_or_default();
        wrong_subject(subject).map(|what| format!("{line}: {what}"))
    };
    assert_tidy(log.lines().filter_map(wrong).collect());
}

#[test]
fn words_that_are_not_plain_are_found() {
    let code = "//! A client who waits. The user\n//! who waits, and `who` is code.\n\
                fn f() { print(\"no one, nobody\\n\", '\"', r#\"nobody\"#); } // It is no node.\n\
                // There is no node. It is no longer one. It is. No node is all right.\n\n\
                /* who */ let s = \"it begins\n anew\"; // So\n// many.\n\
                // They are all the same; it goes on all the same. It is well below, and is well.\n";
    let source = Source { path: "x.rs".to_owned(), text: code.to_owned() };
    let found = problems(&source);
    let lines: Vec<&str> = found.iter().filter_map(|it| it.split('`').nth(1)).collect();
    assert_eq!(lines, ["who", "is no", "nobody", "anew", "so many", "all the same", "is well"]);
    assert!(found[4].starts_with("x.rs:7:"), "{found:?}");
    let page = "Anybody\n```\nnobody\n```\n\n| who | so many |\n";
    let page = |path: &str| Source { path: path.to_owned(), text: page.to_owned() };
    assert_eq!(problems(&page("a/PROTOCOL.md")).len(), 1);
    assert_eq!(problems(&page("docs/A.md")).len(), 3);
}

#[test]
fn a_doc_that_begins_without_a_verb_is_found() {
    let code = "/// Returns a path.\nfn a() {}\n/// The path.\n#[cfg(\n    test)]\n\
                pub(crate) async fn b(\n    x: u8,\n) {}\n\
                /// Bytes sent.\npub fn c() -> usize {\n/// Names of members.\nconst fn d();\n\
                /// As [`a`].\nfn e();\n/// As a\nfn f();\n\
                /// True if it is.\nfn g() -> bool;\n/// Whether it is.\nfn h(x: u8) -> bool {\n\
                /// Sends it. Returns true if it did.\nfn i() -> bool {\n/// Sends it.\nfn j() -> bool {\n\
                /// Sends.\nfn k(f: impl Fn() -> bool) {\n\
                /// It is.\nis_so: bool,\n/// True if it is.\npub is_so: bool,\n\
                /// Print it.\n#[arg(long)]\nflag: bool,\n/// It is.\nconst A: bool = true;\n\
                /// The type.\nstruct A;\n";
    let source = Source { path: "x.rs".to_owned(), text: code.to_owned() };
    let found: Vec<String> =
        problems(&source).iter().map(|it| it.split(':').nth(1).unwrap().to_owned()).collect();
    assert_eq!(found, ["3", "9", "11", "15", "19", "23", "27", "34"]);
}

#[test]
fn a_long_subject_is_found() {
    assert_eq!(wrong_subject("Return the path"), None);
    assert!(wrong_subject("return the path").is_some());
    assert!(wrong_subject("Return the path.").is_some());
    assert!(wrong_subject(&format!("R{}", "e".repeat(SUBJECT_MAX))).is_some());
}
