//! RESP, the protocol of redis: `GET`, and `MGET` for a batch.
//!
//! ```text
//! GET    $4096\r\n payload \r\n
//! MGET   *2\r\n $4096\r\n payload \r\n $4096\r\n payload \r\n
//! ```

use anyhow::{Result, bail, ensure};

use super::{Step, Texts, Wire, line, number, preview, starts};
use crate::content::ObjectSet;

/// Redis serving an [`ObjectSet`].
pub struct Redis {
    texts: Texts,
    size: usize,
    batch: usize,
}

/// Where in a reply a connection is.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum RedisStage {
    /// At the start of a reply.
    #[default]
    Start,
    /// Before the length of this part of a batch.
    Length(usize),
    /// Behind the payload of this part.
    Trailer(usize),
}

impl Redis {
    /// Prepares requests of `batch` keys each: 1 asks by `GET`, more by `MGET`.
    pub fn new(set: &ObjectSet, batch: usize) -> Redis {
        let prefix = if batch == 1 {
            "*2\r\n$3\r\nGET\r\n".to_owned()
        } else {
            format!("*{}\r\n$4\r\nMGET\r\n", batch + 1)
        };
        let item = |index| {
            let key = set.key(index);
            format!("${}\r\n{key}\r\n", key.len())
        };
        Redis { texts: Texts::new(set, prefix, "", item), size: set.size, batch }
    }
}

impl Wire for Redis {
    type Stage = RedisStage;
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
    fn step(&self, stage: &mut RedisStage, bytes: &[u8]) -> Result<Option<Step>> {
        let mut step = Step { head: 2, payload: None, part: 0, slot: None, done: false };
        if let RedisStage::Trailer(part) = *stage {
            match starts(bytes, b"\r\n") {
                None => return Ok(None),
                Some(false) => bail!("redis: no line end behind the value"),
                Some(true) => {}
            }
            step.part = part;
            step.done = part + 1 == self.batch;
            *stage = if step.done { RedisStage::Start } else { RedisStage::Length(part + 1) };
            return Ok(Some(step));
        }
        let Some(line) = line(bytes)? else {
            return Ok(None);
        };
        step.head = line.len() + 2;
        let part = match *stage {
            RedisStage::Start if self.batch > 1 => {
                ensure!(
                    line.first() == Some(&b'*') && number(&line[1..]) == Some(self.batch),
                    "redis did not answer a batch of {} but {:?}",
                    self.batch,
                    preview(line)
                );
                *stage = RedisStage::Length(0);
                return Ok(Some(step));
            }
            RedisStage::Start => 0,
            RedisStage::Length(part) | RedisStage::Trailer(part) => part,
        };
        if line.first() != Some(&b'$') {
            bail!("redis answered {:?}", preview(line));
        }
        let Some(length) = number(&line[1..]) else {
            bail!("redis has not this object: it answered {:?}", preview(line));
        };
        step.part = part;
        step.payload = Some(length);
        *stage = RedisStage::Trailer(part);
        Ok(Some(step))
    }
}
