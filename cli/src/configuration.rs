//! docs/CONFIGURATION.md, written from the tables of keys.
//!
//! The file is compared with what the tables say; with MILLRACE_BLESS=1 in the environment it is written.

use std::fmt::Write as _;
use std::path::Path;

use millrace_ops::settings::Settings;

const HEAD: &str = "\
# Configuration

Every key of a node and of a replica of coordination, written from their tables. After a change there:
`MILLRACE_BLESS=1 cargo test -p millrace-cli configuration`.

A key `some_key` is `some_key = VALUE` in the TOML file of `--config FILE`, and the flag `--some-key VALUE`, which wins.
Sizes are powers of 1024 (`64KiB`, `1G`), counts may have `_` between digits. A value outside its range and an unknown
key are refused, with the place and the nearest name. `--print-config` prints the settings in effect as such a file.
";
const NODE: &str = "
## millrace node

Every key is also an environment variable, `MILLRACE_SOME_KEY`, which wins over the file and not over the flag.
";
const COORD: &str = "
## millrace coord

There are no environment variables. Instead of a TOML file a `zoo.cfg` of ZooKeeper may be given; what becomes of its
keys is in [COORDINATION.md](COORDINATION.md).
";

fn table<C: Settings>() -> String {
    let mut text =
        String::from("\n| key | default | what it does | allowed |\n|---|---|---|---|\n");
    for key in C::KEYS {
        let cell = |text: &str| text.replace('|', "\\|").replace('<', "&lt;").replace('*', "\\*");
        let default = key.default.strip_prefix("none: ").unwrap_or(key.default);
        let (name, help, example) = (key.name, cell(key.help), key.example.replace('|', "\\|"));
        let (default, allowed) = (cell(default), cell(&key.allowed()));
        // Writing into a string cannot fail.
        let _ = writeln!(text, "| `{name}` | {default} | {help} | {allowed}; as `{example}` |");
    }
    text
}

fn document() -> String {
    let node = table::<millrace_node::Config>();
    let coord = table::<millrace_coord::Config>();
    [HEAD, NODE, &node, COORD, &coord].concat()
}

#[test]
fn the_document_says_what_the_tables_of_keys_say() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/CONFIGURATION.md");
    let wanted = document();
    if std::env::var_os("MILLRACE_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(&file, &wanted).expect("write the document");
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    let differs = wanted.lines().zip(found.lines()).find(|(wanted, found)| wanted != found);
    assert!(
        found == wanted,
        "docs/CONFIGURATION.md is stale: run MILLRACE_BLESS=1 cargo test -p millrace-cli \
         configuration; first difference: {differs:?}"
    );
}
