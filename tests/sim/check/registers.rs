//! Writes, conditional writes and reads behind a sync are linearizable, for each register: Herlihy and
//! Wing, 1990. ZooKeeper's guide promises it of writes. Our `sync` asks a majority, so it also promises
//! it of a read behind a sync.
//!
//! A write of unknown fate can take effect only until its client is served again: requests of the
//! session over an older connection are refused from then on.

use std::collections::BTreeMap;

use millrace_proto::zookeeper::Error;
use millrace_tests::linearizable::{
    self, NEVER, Register, RegisterOperation, Timed, Verdict, check,
};

use crate::client::REGISTERS;
use crate::observe::{Answer, Asked, Check, Ending, Seen, What};

/// Steps after which the search in one register's history is given up.
const STEPS_MAX: usize = 300_000;

/// See the module.
#[derive(Default)]
pub(super) struct Registers {
    histories: BTreeMap<usize, Vec<Timed<RegisterOperation>>>,
    /// By client: writes of unknown fate that may still take effect, as register and place.
    open: BTreeMap<usize, Vec<(usize, usize)>>,
    undecided: u64,
}

fn operation(asked: &Asked, answer: &Answer) -> Option<(usize, u64, RegisterOperation)> {
    let began_us = asked.began_us;
    let error = answer.header.error;
    match asked.what {
        What::Set { register, value, expected } => {
            let operation = match (answer.stat(&asked.what), expected) {
                (Some(stat), None) => {
                    RegisterOperation::Set(Register { value, version: stat.version })
                }
                (Some(_), Some(expected)) => RegisterOperation::Swap { expected, value },
                (None, Some(expected)) if error == Error::BadVersion.code() => {
                    RegisterOperation::SwapRefused { expected }
                }
                _ => return None,
            };
            Some((register, began_us, operation))
        }
        What::Both { register, value, expected, .. } if answer.is_ok() => {
            let operation = match answer.multi_error() {
                None => RegisterOperation::Swap { expected, value },
                Some(error) if error == Error::BadVersion.code() => {
                    RegisterOperation::SwapRefused { expected }
                }
                Some(_) => return None,
            };
            Some((register, began_us, operation))
        }
        What::Get { register, synced_us: Some(synced_us), .. } => {
            let version = answer.stat(&asked.what)?.version;
            let seen = Register { value: answer.value()?, version };
            Some((register, synced_us, RegisterOperation::Read(seen)))
        }
        _ => None,
    }
}

impl Registers {
    fn broke(&mut self, client: usize, unanswered: &[Asked]) {
        for asked in unanswered {
            let (register, value, expected) = match asked.what {
                What::Set { register, value, expected } => (register, value, expected),
                What::Both { register, value, expected, .. } => (register, value, Some(expected)),
                _ => continue,
            };
            let history = self.histories.entry(register).or_default();
            self.open.entry(client).or_default().push((register, history.len()));
            let operation = RegisterOperation::Maybe { expected, value };
            history.push(Timed { operation, began: asked.began_us, ended: NEVER });
        }
    }

    /// Closes what a client asked before: it has happened by now, or never will.
    fn close(&mut self, at_us: u64, client: usize) {
        for (register, place) in self.open.remove(&client).unwrap_or_default() {
            if let Some(history) = self.histories.get_mut(&register) {
                history[place].ended = at_us;
            }
        }
    }
}

impl Check for Registers {
    fn property(&self) -> &'static str {
        "registers are linearizable"
    }

    fn see(&mut self, at_us: u64, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Answered { asked, answer, .. } => {
                if let Some((register, began, operation)) = operation(asked, answer) {
                    let timed = Timed { operation, began, ended: at_us };
                    self.histories.entry(register).or_default().push(timed);
                }
            }
            Seen::Broke { client, unanswered, .. } => self.broke(*client, unanswered),
            Seen::Opened { client, .. } | Seen::Expired { client, .. } => {
                self.close(at_us, *client);
            }
            _ => {}
        }
        Ok(())
    }

    fn undecided(&self) -> u64 {
        self.undecided
    }

    fn end(&mut self, _ending: &Ending<'_>) -> Result<(), String> {
        for register in 0..REGISTERS {
            let Some(history) = self.histories.get(&register) else { continue };
            let initial = Register { value: 0, version: 0 };
            match check(&linearizable::Registers, initial, history, STEPS_MAX) {
                Verdict::Linearizable => {}
                Verdict::Undecided => self.undecided += 1,
                Verdict::Violated { explained, stuck } => {
                    let stuck: Vec<_> = stuck.iter().map(|&place| &history[place]).collect();
                    return Err(format!(
                        "register {register}: {explained} of {} operations are explained, none \
                         of these can be next: {stuck:#?}",
                        history.len()
                    ));
                }
            }
        }
        Ok(())
    }
}
