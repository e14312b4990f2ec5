//! The four-letter words of ZooKeeper's monitoring, and which of them a replica answers.

/// One word: four bytes that a client sends in place of a connect request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Word {
    /// Settings.
    Conf,
    /// Connections with their figures.
    Cons,
    /// Resets the figures of connections.
    Crst,
    /// Bytes on disk.
    Dirs,
    /// Sessions, ephemeral nodes and connections.
    Dump,
    /// The process and its machine.
    Envi,
    /// The trace mask; there is none.
    Gtmk,
    /// Digest of the state, which takes a look at every znode.
    Hash,
    /// Whether writes are taken: `rw`, `ro` or `null`.
    Isro,
    /// All figures, a line each.
    Mntr,
    /// Whether the process runs: `imok`.
    Ruok,
    /// Resets the figures of the server.
    Srst,
    /// Figures of the server.
    Srvr,
    /// Figures of the server and a line for each connection.
    Stat,
    /// Watches by session.
    Wchc,
    /// Watches by path.
    Wchp,
    /// How many watches.
    Wchs,
}

impl Word {
    /// All words, by name.
    pub const ALL: [Word; 17] = [
        Word::Conf,
        Word::Cons,
        Word::Crst,
        Word::Dirs,
        Word::Dump,
        Word::Envi,
        Word::Gtmk,
        Word::Hash,
        Word::Isro,
        Word::Mntr,
        Word::Ruok,
        Word::Srst,
        Word::Srvr,
        Word::Stat,
        Word::Wchc,
        Word::Wchp,
        Word::Wchs,
    ];

    /// The four letters.
    pub fn name(self) -> &'static str {
        match self {
            Word::Conf => "conf",
            Word::Cons => "cons",
            Word::Crst => "crst",
            Word::Dirs => "dirs",
            Word::Dump => "dump",
            Word::Envi => "envi",
            Word::Gtmk => "gtmk",
            Word::Hash => "hash",
            Word::Isro => "isro",
            Word::Mntr => "mntr",
            Word::Ruok => "ruok",
            Word::Srst => "srst",
            Word::Srvr => "srvr",
            Word::Stat => "stat",
            Word::Wchc => "wchc",
            Word::Wchp => "wchp",
            Word::Wchs => "wchs",
        }
    }

    /// The word of these bytes, such as the first four of a connection.
    pub fn parse(bytes: &[u8]) -> Option<Word> {
        Word::ALL.into_iter().find(|word| word.name().as_bytes() == bytes)
    }

    /// Whether it only tells.
    pub fn is_read_only(self) -> bool {
        !matches!(self, Word::Crst | Word::Srst)
    }

    /// What a replica answers unless it is told otherwise: words that only tell, but for the digest.
    /// Anybody who reaches a client's port may ask, and while it is computed nobody else is served.
    pub fn harmless() -> Vec<Word> {
        let is_harmless = |word: &Word| word.is_read_only() && *word != Word::Hash;
        Word::ALL.into_iter().filter(is_harmless).collect()
    }
}

/// Words of a list with commas, `*` for all; the names that are no words come second. `stmk`
/// of ZooKeeper sets what does not exist here and counts as known.
pub(super) fn parse_words(text: &str) -> (Vec<Word>, Vec<&str>) {
    let mut words = Vec::new();
    let mut unknown = Vec::new();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match Word::parse(name.as_bytes()) {
            Some(word) => words.push(word),
            None if name == "*" => words.extend(Word::ALL),
            None if name == "stmk" => {}
            None => unknown.push(name),
        }
    }
    words.sort_unstable();
    words.dedup();
    (words, unknown)
}

/// The list as [`parse_words`] reads it.
pub(super) fn format_words(words: &[Word]) -> String {
    words.iter().map(|word| word.name()).collect::<Vec<_>>().join(",")
}
