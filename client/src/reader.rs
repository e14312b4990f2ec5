//! A file as bytes that follow each other: read ahead, in order, with a position that can be moved.
//!
//! ```text
//!             position                             asked to here
//!                ▼                                      ▼
//!  file  ... │ here ░░░│ here ░░░│  asked  │  here ░░░│        ...
//!            └──────── at most the window ─────────────┘
//! ```
//!
//! Each piece is one read, in a task of its own, so that it goes on while nothing is asked of the reader.
//! Always holds: pieces follow each other without a gap, the first one has the position or ends there, and
//! a piece lies in as few blocks as it can. After a failure nothing is given out until a seek.

use std::collections::VecDeque;
use std::io::{self, SeekFrom};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_core::Stream;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncSeek, ReadBuf};
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::error::Error;
use crate::file::File;
use crate::read::{self, ReadOptions};

/// Bytes that are read ahead if nothing else is said. Guessed: what 10 Gbit/s bring in 6 ms.
const READ_AHEAD: u64 = 8 << 20;
/// Most bytes that are read ahead.
const READ_AHEAD_MAX: u64 = 1 << 30;
/// Bytes of the shortest piece, and of the first window: a reader that seeks about reads little in vain.
const PIECE_MIN: u64 = 64 << 10;
/// Bytes of the longest piece. Guessed: a request costs little beside them.
const PIECE_MAX: u64 = 1 << 20;
/// A piece is this share of the window, so that others are under way while it is used.
const WINDOW_PIECES: u64 = 4;

impl Client {
    /// Returns a reader of a file, which begins at its start. Nothing is asked before the first read.
    ///
    /// ```no_run
    /// # async fn example(client: millrace_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::io::SeekFrom;
    /// use tokio::io::{AsyncReadExt, AsyncSeekExt};
    ///
    /// let file = client.stat("datasets/train.bin").await?;
    /// let mut reader = client.reader(&file);
    /// let mut header = [0; 512];
    /// reader.read_exact(&mut header).await?;
    /// reader.seek(SeekFrom::Start(1 << 20)).await?;
    /// let mut rest = Vec::new();
    /// reader.read_to_end(&mut rest).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn reader(&self, file: &File) -> Reader {
        Reader {
            client: self.clone(),
            file: file.clone(),
            options: ReadOptions::default(),
            read_ahead: READ_AHEAD,
            position: 0,
            window: PIECE_MIN,
            pieces: VecDeque::new(),
            failure: read::check_kind(file).err(),
        }
    }
}

/// Reads one version of a file from a position on, which [`AsyncSeek`] moves.
///
/// It reads ahead, 64 KiB at first and twice as much with each piece that was used, up to 8 MiB or what
/// [`Reader::with_read_ahead`] says. [`AsyncRead`] copies the bytes once, into the caller's buffer;
/// [`AsyncBufRead`] and [`Reader::into_stream`] do not copy them. A future of it may be dropped at any time,
/// because no byte is lost. A seek to what is not read ahead drops the reads that are under way, and so does
/// the end of the reader.
///
/// # Errors
/// Those of [`Client::read`], as [`std::io::Error`] whose inner error is the [`Error`]: so
/// [`Error::Stale`] if the file has changed since it was looked up. Each piece has the whole time of
/// [`ReadOptions::deadline`]. After an error every read returns the same one, until a seek, also one to where
/// the reader is, has it try again.
#[derive(Debug)]
pub struct Reader {
    client: Client,
    file: File,
    options: ReadOptions,
    /// Most bytes of the window.
    read_ahead: u64,
    /// Offset in the file of the next byte; may be past its end.
    position: u64,
    /// Bytes that may be asked for from the first piece on.
    window: u64,
    pieces: VecDeque<ReadAhead>,
    /// Why nothing is given out any more.
    failure: Option<Error>,
}

/// A part of the file.
#[derive(Debug)]
struct ReadAhead {
    start: u64,
    end: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Asked(Task),
    Here(Bytes),
}

/// A read that ends when it is dropped.
#[derive(Debug)]
struct Task(JoinHandle<Result<Bytes, Error>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Reader {
    /// Returns this reader with at most this many bytes read ahead, 64 KiB to 1 GiB. Default 8 MiB. With 64 KiB one
    /// piece is read at a time.
    pub fn with_read_ahead(mut self, byte_count: u64) -> Reader {
        self.read_ahead = byte_count.clamp(PIECE_MIN, READ_AHEAD_MAX);
        self.window = self.window.min(self.read_ahead);
        self
    }

    /// Returns this reader with other options for each piece that is not asked for yet.
    pub fn with_options(mut self, options: ReadOptions) -> Reader {
        self.options = options;
        self
    }

    /// Returns the file that is read.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the offset in the file of the next byte; past the end of the file after a seek to there.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Returns the bytes from the position to the end of the file as a stream of pieces of at most 1 MiB.
    ///
    /// ```no_run
    /// # async fn example(client: millrace_client::Client) -> Result<(), millrace_client::Error> {
    /// use futures_util::StreamExt;
    ///
    /// let file = client.stat("datasets/train.bin").await?;
    /// let mut stream = client.reader(&file).into_stream();
    /// while let Some(bytes) = stream.next().await {
    ///     println!("{} bytes", bytes?.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_stream(self) -> ByteStream {
        ByteStream { reader: self, is_over: false }
    }

    /// Waits until the first piece has the byte at the position; at the end of the file there is no piece.
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let Some(error) = &self.failure {
            return Poll::Ready(Err(error.clone()));
        }
        while self.pieces.pop_front_if(|piece| piece.end <= self.position).is_some() {
            self.grow();
        }
        self.ask();
        let Some(ReadAhead { content, .. }) = self.pieces.front_mut() else {
            return Poll::Ready(Ok(()));
        };
        let Content::Asked(task) = content else { return Poll::Ready(Ok(())) };
        let read = ready!(Pin::new(&mut task.0).poll(context));
        match read.unwrap_or_else(|_| Err(self.client.stopped())) {
            Ok(bytes) => *content = Content::Here(bytes),
            Err(error) => {
                self.pieces.clear();
                self.failure = Some(error.clone());
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Asks for the pieces that the window has room for, and for one at least.
    fn ask(&mut self) {
        let length_max = self.client.config().read_length_max.clamp(1, PIECE_MAX);
        let length = (self.window / WINDOW_PIECES).max(PIECE_MIN).min(length_max);
        // A power of two, as a block's size is: so a piece ends where a block does.
        let length = 1 << length.ilog2();
        let first = self.pieces.front().map_or(self.position, |piece| piece.start);
        let mut start = self.pieces.back().map_or(self.position, |piece| piece.end);
        while start < self.file.length {
            let end = (start - start % length).saturating_add(length).min(self.file.length);
            if !self.pieces.is_empty() && end - first > self.window {
                return;
            }
            let (client, file, options) = (self.client.clone(), self.file.clone(), self.options);
            let read = async move { client.read_with(&file, start, end - start, options).await };
            let task = Task(self.client.network().runtime().spawn(read));
            self.pieces.push_back(ReadAhead { start, end, content: Content::Asked(task) });
            start = end;
        }
    }

    /// Widens the window, because a piece was used to its end.
    fn grow(&mut self) {
        self.window = (self.window * 2).min(self.read_ahead);
    }

    /// Returns the bytes from the position on that are here.
    fn here(&self) -> &[u8] {
        match self.pieces.front() {
            Some(ReadAhead { start, content: Content::Here(bytes), .. }) => {
                &bytes[(self.position - start) as usize..]
            }
            _ => &[],
        }
    }

    /// Goes to a position. What is read ahead from there on stays.
    fn go_to(&mut self, position: u64) {
        self.failure = read::check_kind(&self.file).err();
        if position == self.position {
            return;
        }
        self.position = position;
        let first = self.pieces.front().map_or(0, |piece| piece.start);
        let end = self.pieces.back().map_or(0, |piece| piece.end);
        if (first..end).contains(&position) {
            while self.pieces.pop_front_if(|piece| piece.end <= position).is_some() {}
        } else {
            self.pieces.clear();
            self.window = PIECE_MIN;
        }
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let reader = self.get_mut();
        if target.remaining() > 0 {
            ready!(reader.poll_ready(context))?;
            let here = reader.here();
            let count = here.len().min(target.remaining());
            target.put_slice(&here[..count]);
            reader.position += count as u64;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncBufRead for Reader {
    fn poll_fill_buf(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let reader = self.get_mut();
        ready!(reader.poll_ready(context))?;
        Poll::Ready(Ok(reader.here()))
    }

    /// Takes bytes that were seen.
    ///
    /// # Panics
    /// If this many bytes are not here.
    fn consume(self: Pin<&mut Self>, count: usize) {
        let reader = self.get_mut();
        assert!(count <= reader.here().len(), "only what is here is used");
        reader.position += count as u64;
    }
}

impl AsyncSeek for Reader {
    fn start_seek(self: Pin<&mut Self>, target: SeekFrom) -> io::Result<()> {
        let reader = self.get_mut();
        let position = match target {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(distance) => reader.file.length.checked_add_signed(distance),
            SeekFrom::Current(distance) => reader.position.checked_add_signed(distance),
        };
        let Some(position) = position else {
            let text = "a seek to before the start of the file, or past what can be counted";
            return Err(Error::InvalidArgument(text.to_owned()).into());
        };
        reader.go_to(position);
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.position))
    }
}

/// The bytes of a file in pieces, in order, without a copy. After an error it has ended.
///
/// A piece of at most 16 KiB is a slice of a 64 KiB receive buffer: copy it if it is to be kept for long.
#[derive(Debug)]
pub struct ByteStream {
    reader: Reader,
    /// True if an error was given out.
    is_over: bool,
}

impl Stream for ByteStream {
    type Item = Result<Bytes, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = self.get_mut();
        if stream.is_over {
            return Poll::Ready(None);
        }
        if let Err(error) = ready!(stream.reader.poll_ready(context)) {
            stream.is_over = true;
            return Poll::Ready(Some(Err(error)));
        }
        let reader = &mut stream.reader;
        let Some(ReadAhead { start, end, content: Content::Here(mut bytes) }) =
            reader.pieces.pop_front()
        else {
            return Poll::Ready(None);
        };
        bytes.advance((reader.position - start) as usize);
        reader.position = end;
        reader.grow();
        Poll::Ready(Some(Ok(bytes)))
    }
}
