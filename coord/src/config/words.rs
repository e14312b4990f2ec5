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
    /// Digest of the state, which reads every znode.
    Hash,
    /// Access for writes: `rw`, `ro` or `null`.
    Isro,
    /// All figures, a line each.
    Mntr,
    /// Health of the process: `imok`.
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
    /// Count of watches.
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

    /// Returns the four letters.
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

    /// Finds the word of these bytes, such as the first four of a connection.
    pub fn parse(bytes: &[u8]) -> Option<Word> {
        Word::ALL.into_iter().find(|word| word.name().as_bytes() == bytes)
    }

    /// True if it only reports.
    pub fn is_read_only(self) -> bool {
        !matches!(self, Word::Crst | Word::Srst)
    }

    /// Returns the default words: all that only report, except the digest. Every client may ask for it, and
    /// while it is computed no other client is served.
    pub fn harmless() -> Vec<Word> {
        let is_harmless = |word: &Word| word.is_read_only() && *word != Word::Hash;
        Word::ALL.into_iter().filter(is_harmless).collect()
    }
}

/// Reads a list with commas, `*` for all. Returns the words, then the unknown names. ZooKeeper's `stmk` has
/// nothing to set here, and counts as known.
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

/// Writes the list that [`parse_words`] reads.
pub(super) fn format_words(words: &[Word]) -> String {
    words.iter().map(|word| word.name()).collect::<Vec<_>>().join(",")
}
