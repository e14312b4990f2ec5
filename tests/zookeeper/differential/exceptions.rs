//! What the two servers may say differently, each with the reason, and how often it happened.
//!
//! The one list of them: a difference that is not here fails a run.

/// A difference that is known and explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exception {
    EventZxid,
    CloseOrder,
    AclOrder,
    LastZxid,
}

const ALL: [(Exception, &str); 4] = [
    (
        Exception::EventZxid,
        "ZooKeeper up to 3.8 sends -1 as the zxid of a watch event; later ones, and the right \
         server, send the zxid of the write. It must lie after the zxid of the reply before the \
         event and not after that of the reply that follows",
    ),
    (
        Exception::CloseOrder,
        "ZooKeeper deletes the ephemeral nodes of a closed session in the order of a Java HashSet: \
         the events of one close are compared as a set",
    ),
    (
        Exception::AclOrder,
        "the scheme `auth` stands for every id of the connection, in the order of a Java hash map: \
         entries with a digest are compared as a set",
    ),
    (
        Exception::LastZxid,
        "with --sparse-zxids only: ZooKeeper counts a zxid for every write, also one that fails. A \
         server that does not may say another zxid in the headers of replies, as long as it lies \
         between the same transactions: those it had applied, and those it had not",
    ),
];

/// Counts how often each exception was used.
#[derive(Default)]
pub(crate) struct Exceptions {
    used: [u64; ALL.len()],
}

impl Exceptions {
    pub(crate) fn count(&mut self, exception: Exception) {
        self.used[exception as usize] += 1;
    }

    pub(crate) fn print(&self) {
        for (exception, reason) in ALL {
            let used = self.used[exception as usize];
            println!("  {used:>9}  {exception:?}: {reason}");
        }
    }
}
