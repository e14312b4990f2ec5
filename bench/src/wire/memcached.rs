//! The classic text protocol of memcached: `get` of one key or several.
//!
//! ```text
//! VALUE 4096:7 0 4096\r\n payload \r\n VALUE .. \r\n payload \r\n END\r\n
//! ```

use anyhow::{Result, bail};

use super::{Step, Texts, Wire, line, number, preview, starts};
use crate::content::ObjectSet;

/// Memcached serving an [`ObjectSet`].
pub struct Memcached {
    texts: Texts,
    size: usize,
    batch: usize,
}

/// Where in a reply a connection is.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct MemcachedStage {
    /// Values whose payload has begun.
    values: usize,
    /// True if what comes next stands after a payload.
    trailer: bool,
}

impl Memcached {
    /// Prepares requests of `batch` keys each.
    pub fn new(set: &ObjectSet, batch: usize) -> Memcached {
        Memcached {
            texts: Texts::new(set, "get", "\r\n", |index| format!(" {}", set.key(index))),
            size: set.size,
            batch,
        }
    }
}

impl Wire for Memcached {
    type Stage = MemcachedStage;
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
    fn step(&self, stage: &mut MemcachedStage, bytes: &[u8]) -> Result<Option<Step>> {
        let mut step = Step { head: 0, payload: None, part: 0, slot: None, done: false };
        if stage.trailer {
            let last = stage.values == self.batch;
            let expected: &[u8] = if last { b"\r\nEND\r\n" } else { b"\r\n" };
            match starts(bytes, expected) {
                None => return Ok(None),
                Some(false) => bail!("memcached answered {:?} behind a value", preview(bytes)),
                Some(true) => {}
            }
            stage.trailer = false;
            if last {
                stage.values = 0;
            }
            step.head = expected.len();
            step.done = last;
            return Ok(Some(step));
        }
        let Some(line) = line(bytes)? else {
            return Ok(None);
        };
        if line == b"END" {
            bail!(
                "memcached has not this object: it answered {} of {} keys",
                stage.values,
                self.batch
            );
        }
        let mut words = line.split(|&byte| byte == b' ');
        let length = words.nth(3).and_then(number);
        let (true, Some(length)) = (line.starts_with(b"VALUE "), length) else {
            bail!("memcached answered {:?}", preview(line));
        };
        step.head = line.len() + 2;
        step.payload = Some(length);
        step.part = stage.values;
        stage.values += 1;
        stage.trailer = true;
        Ok(Some(step))
    }
}
