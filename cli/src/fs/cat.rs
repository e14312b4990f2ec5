//! `millrace fs cat`: a file, or a range of it, to stdout.
//!
//! Owns the syntax of ranges and the window of blocks in flight: pieces are asked for ahead and written
//! in order. So memory is bounded, and the network never waits for the reader alone.

use std::collections::VecDeque;
use std::str::FromStr;

use millrace_client::{Client, File, Kind};
use millrace_ops::size::parse_size;

use crate::failure::{Failure, shown};
use crate::{jobs, output, walk};

/// Most bytes in flight, though always two blocks. Guessed: enough for 10 Gbit/s over 20 ms.
const WINDOW_BYTES_MAX: u64 = 32 << 20;
/// Most blocks in flight.
const WINDOW_MAX: usize = 32;
/// Versions of a file that are tried while it changes again and again. Guessed.
pub(super) const VERSIONS_MAX: usize = 8;

/// Write a file, or a range of it, to stdout.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  millrace fs cat notes.txt
  millrace fs cat train.csv --range 0-999       the first 1000 bytes
  millrace fs cat train.csv --range -100        the last 100
  millrace fs cat disk.img --offset 1GiB --length 4KiB | xxd")]
pub(super) struct CatArgs {
    /// The file
    path: String,
    /// Where to begin, at most at the end of the file
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "range")]
    offset: Option<u64>,
    /// How many bytes to write at most
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "range")]
    length: Option<u64>,
    /// First and last byte, counted from 0 as in HTTP: 0-99, 100- for all from there, -100 for the
    /// last 100
    #[arg(long, value_name = "FIRST-LAST", allow_hyphen_values = true)]
    range: Option<Span>,
    /// Do not compare the bytes with the node's checksums
    #[arg(long)]
    pub(super) no_verify: bool,
}

/// Bytes of a file whose length is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Span {
    /// From an offset, at most this many.
    From { offset: u64, length: u64 },
    /// The last bytes, at most this many.
    Last(u64),
}

impl Span {
    /// Returns offset and length within a file of `file_length` bytes.
    fn within(self, file_length: u64) -> (u64, u64) {
        let (offset, length) = match self {
            Span::From { offset, length } => (offset.min(file_length), length),
            Span::Last(length) => (file_length.saturating_sub(length), length),
        };
        (offset, length.min(file_length - offset))
    }
}

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Span, &'static str> {
        const FORM: &str = "use FIRST-LAST, FIRST- or -COUNT, in bytes, such as 0-99";
        let number = |text: &str| {
            let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let number = is_number.then(|| text.parse::<u64>().ok()).flatten();
            number.ok_or(FORM)
        };
        match text.trim().split_once('-').ok_or(FORM)? {
            ("", count) => Ok(Span::Last(number(count)?)),
            (first, "") => Ok(Span::From { offset: number(first)?, length: u64::MAX }),
            (first, last) => {
                let (offset, last) = (number(first)?, number(last)?);
                let more = last.checked_sub(offset);
                Ok(Span::From {
                    offset,
                    length: more.ok_or("the last byte is before the first")?.saturating_add(1),
                })
            }
        }
    }
}

pub(super) async fn run(client: &Client, args: &CatArgs) -> Result<(), Failure> {
    let path = walk::clean(&args.path);
    let file = client.stat(&path).await.map_err(|error| Failure::at_path(&path, &error))?;
    if file.kind == Kind::Directory {
        let message = format!("{} is a directory; list it with fs ls", shown(&path));
        return Err(Failure::new(message));
    }
    stream_current(client, file, |file| range(args, file), output::print_bytes).await
}

/// Returns the range of the file that is asked for.
///
/// # Errors
/// If it begins past the end.
fn range(args: &CatArgs, file: &File) -> Result<(u64, u64), Failure> {
    let span = args.range.unwrap_or(Span::From {
        offset: args.offset.unwrap_or(0),
        length: args.length.unwrap_or(u64::MAX),
    });
    if let Span::From { offset, .. } = span
        && offset > file.length
        && file.length > 0
    {
        let flag = if args.range.is_some() { "--range" } else { "--offset" };
        let message = format!(
            "flag {flag}: begins at byte {offset}, {} has {} bytes",
            shown(&file.path),
            file.length
        );
        return Err(Failure::new(message));
    }
    Ok(span.within(file.length))
}

/// As [`stream`], of the version that the file has now: if it changes before the first byte is handed over, another
/// one is read.
///
/// # Errors
/// As [`stream`], and those of `range`.
pub(super) async fn stream_current(
    client: &Client,
    mut file: File,
    range: impl Fn(&File) -> Result<(u64, u64), Failure>,
    mut put: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut has_begun = false;
    for _ in 1..VERSIONS_MAX {
        let span = range(&file)?;
        let begin = |bytes: &[u8]| {
            has_begun = true;
            put(bytes)
        };
        let result = stream(client, &file, span, begin).await;
        if result.is_ok() || has_begun {
            return result;
        }
        match client.stat(&file.path).await {
            Ok(newer) if newer.version != file.version => file = newer,
            _ => return result,
        }
    }
    let span = range(&file)?;
    stream(client, &file, span, put).await
}

/// Hands a range of a file over in order; pieces are asked for ahead.
///
/// # Errors
/// The first error of a read, or of `put`.
async fn stream(
    client: &Client,
    file: &File,
    (offset, length): (u64, u64),
    mut put: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let block_size = u64::from(file.block_size);
    let window = jobs::window(WINDOW_BYTES_MAX, block_size, 2, WINDOW_MAX);
    let mut pieces = pieces(offset, length, block_size);
    let mut in_flight = VecDeque::with_capacity(window);
    loop {
        while in_flight.len() < window
            && let Some((offset, length)) = pieces.next()
        {
            let (client, file) = (client.clone(), file.clone());
            in_flight
                .push_back(tokio::spawn(async move { client.read(&file, offset, length).await }));
        }
        let Some(read) = in_flight.pop_front() else {
            return Ok(());
        };
        let bytes = read
            .await
            .map_err(|error| Failure::new(format!("a read ended: {error}")))?
            .map_err(|error| failure(file, &error))?;
        put(&bytes)?;
    }
}

fn failure(file: &File, error: &millrace_client::Error) -> Failure {
    match error {
        millrace_client::Error::Stale { path } => {
            Failure::new(format!("{path} changed while it was read; read it again"))
        }
        error => Failure::at_path(&file.path, error),
    }
}

/// Cuts a range at block borders, so that no request needs two blocks.
pub(crate) fn pieces(
    offset: u64,
    length: u64,
    block_size: u64,
) -> impl Iterator<Item = (u64, u64)> {
    let end = offset.saturating_add(length);
    let mut position = offset;
    std::iter::from_fn(move || {
        if position >= end {
            return None;
        }
        let start = position;
        position = end.min((start / block_size + 1) * block_size);
        Some((start, position - start))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_http() {
        let check = |text: &str, expect| assert_eq!(text.parse(), Ok(expect), "{text}");
        let from = |offset, length| Span::From { offset, length };
        check("0-99", from(0, 100));
        check("5-5", from(5, 1));
        check("100-", from(100, u64::MAX));
        check("-50", Span::Last(50));
        check(" 1-2 ", from(1, 2));
        check("0-18446744073709551615", from(0, u64::MAX));
        for text in ["", "-", "5", "9-3", "a-b", "1-2-3", "+1-2", "1-2KiB", "--5"] {
            assert!(text.parse::<Span>().is_err(), "{text:?}");
        }
        let huge = "0-18446744073709551616";
        assert!(huge.parse::<Span>().is_err(), "more than 64 bits");
    }

    #[test]
    fn ranges_end_with_the_file() {
        let from = |offset, length| Span::From { offset, length };
        assert_eq!(from(0, 100).within(10), (0, 10));
        assert_eq!(from(4, 3).within(10), (4, 3));
        assert_eq!(from(20, 3).within(10), (10, 0));
        assert_eq!(from(1, u64::MAX).within(10), (1, 9));
        assert_eq!(Span::Last(3).within(10), (7, 3));
        assert_eq!(Span::Last(30).within(10), (0, 10));
        assert_eq!(Span::Last(0).within(0), (0, 0));
    }

    #[test]
    fn pieces_end_at_block_borders() {
        let check = |offset, length, expect: &[(u64, u64)]| {
            assert_eq!(pieces(offset, length, 64).collect::<Vec<_>>(), expect);
        };
        check(0, 0, &[]);
        check(0, 64, &[(0, 64)]);
        check(10, 100, &[(10, 54), (64, 46)]);
        check(64, 129, &[(64, 64), (128, 64), (192, 1)]);
    }
}
