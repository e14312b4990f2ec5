//! HTTP/1.1 with keep-alive and pipelining, as nginx serves files.
//!
//! A reply must say its length: chunked replies are refused, because no file server sends them for
//! files. There is no batch in HTTP.

use anyhow::{Context, Result, bail, ensure};

use super::{Step, Texts, Wire, number, preview};
use crate::content::ObjectSet;

/// Longest head of a reply in bytes. Guessed: nginx sends about 240.
const REPLY_HEAD_LENGTH_MAX: usize = 16 << 10;

/// A web server serving the files of an [`ObjectSet`].
pub struct Http {
    texts: Texts,
    size: usize,
}

impl Http {
    /// Prepares requests of one file each.
    pub fn new(set: &ObjectSet) -> Http {
        let item = |index| format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", set.path(index));
        Http { texts: Texts::new(set, "", "", item), size: set.size }
    }
}

impl Wire for Http {
    type Stage = ();
    const IN_ORDER: bool = true;

    #[inline]
    fn encode(&mut self, _slot: u32, keys: &[u64], out: &mut Vec<u8>) {
        self.texts.encode(keys, out);
    }

    #[inline]
    fn length(&self, _key: u64) -> usize {
        self.size
    }

    #[inline]
    fn step(&self, _stage: &mut (), bytes: &[u8]) -> Result<Option<Step>> {
        let window = &bytes[..bytes.len().min(REPLY_HEAD_LENGTH_MAX)];
        let mut length = None;
        let mut position = 0;
        loop {
            let rest = &window[position..];
            let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
                ensure!(
                    window.len() < REPLY_HEAD_LENGTH_MAX,
                    "the head of an HTTP reply is longer than {REPLY_HEAD_LENGTH_MAX} bytes"
                );
                return Ok(None);
            };
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            if position == 0 && !line.starts_with(b"HTTP/1.1 200") {
                bail!("the web server answered {:?}", preview(line));
            }
            position += end + 1;
            if line.is_empty() {
                break;
            }
            if let Some(value) = content_length(line) {
                length = Some(number(value.trim_ascii()).context("a Content-Length of no number")?);
            }
        }
        Ok(Some(Step {
            head: position,
            payload: Some(length.context("an HTTP reply without Content-Length")?),
            part: 0,
            slot: None,
            done: true,
        }))
    }
}

#[inline]
fn content_length(line: &[u8]) -> Option<&[u8]> {
    const NAME: &[u8] = b"content-length:";
    let (name, value) = line.split_at_checked(NAME.len())?;
    name.eq_ignore_ascii_case(NAME).then_some(value)
}
