//! Requests of an operator.

use millrace_proto::zookeeper::{Request, Writer, opcode};

use super::{Action, AdminRequest, Now, Replica, SLOT_BITS, StateAction, slot_of};
use crate::command::{Act, Command, Identity};

/// The slot in the tags of operators, which no client has.
const ADMIN_SLOT: u64 = (1 << SLOT_BITS) - 1;

/// True if a tag belongs to an operator at any replica, or to a replica's own configuration.
pub(super) fn is_admin_tag(tag: u64) -> bool {
    slot_of(tag) as u64 == ADMIN_SLOT
}

/// Milliseconds that an answer may take.
const PATIENCE_MS: u64 = 15_000;
/// Milliseconds that a change of members may take: new participants connect and catch up.
const RECONFIGURE_PATIENCE_MS: u64 = 90_000;

/// An operator that waits.
pub(super) struct Waiting {
    ticket: u64,
    deadline_ms: u64,
    what: What,
}

enum What {
    Transfer,
    /// Waits until the state is durable up to this index.
    Checkpoint {
        index: u64,
    },
    Reconfigure {
        tag: u64,
        answer: Option<Result<String, String>>,
    },
}

impl Replica {
    pub(super) fn admin(
        &mut self,
        now: Now,
        ticket: u64,
        request: AdminRequest,
        actions: &mut Vec<Action>,
    ) {
        let what = match request {
            AdminRequest::Digest => {
                let reply = format!(
                    "index {} zxid {:#x} digest {:016x}",
                    self.consensus.applied(),
                    self.state.zxid(),
                    self.state.digest()
                );
                return actions.push(Action::AdminReply { ticket, reply: Ok(reply) });
            }
            AdminRequest::Transfer { to } => {
                if !self.consensus.transfer(to) {
                    let error = match self.consensus.is_leader() {
                        true => "there is no other participant to hand leadership to".to_owned(),
                        false => format!("not the leader; ask replica {}", self.leader),
                    };
                    return actions.push(Action::AdminReply { ticket, reply: Err(error) });
                }
                What::Transfer
            }
            AdminRequest::Checkpoint => {
                actions.push(StateAction::FlushCheckpoint.into());
                What::Checkpoint { index: self.consensus.applied() }
            }
            AdminRequest::Reconfigure { joining, leaving } => {
                let tag = self.admin_reconfigure(joining.as_deref(), leaving.as_deref());
                What::Reconfigure { tag, answer: None }
            }
        };
        let patience_ms = match what {
            What::Reconfigure { .. } => RECONFIGURE_PATIENCE_MS,
            _ => PATIENCE_MS,
        };
        self.admin_waiting.push(Waiting { ticket, deadline_ms: now.ms + patience_ms, what });
    }

    /// Asks the leader for a change, with an operator's rights. Returns the tag of the answer.
    pub(super) fn admin_reconfigure(
        &mut self,
        joining: Option<&str>,
        leaving: Option<&str>,
    ) -> u64 {
        let (tag, command) = self.operator_change(joining, leaving);
        self.ask_reconfigure(command);
        tag
    }

    /// Builds the command of a change with an operator's rights, and its tag.
    pub(super) fn operator_change(
        &mut self,
        joining: Option<&str>,
        leaving: Option<&str>,
    ) -> (u64, Vec<u8>) {
        self.writes_issued += 1;
        let tag = self.writes_issued << SLOT_BITS | ADMIN_SLOT;
        let mut record = Vec::new();
        Request::Reconfig { joining, leaving, new_members: None, config_id: -1 }
            .encode(&mut Writer::new(&mut record));
        let command = Command {
            origin: self.origin,
            tag,
            session: 0,
            attach: 0,
            // Every caller of the admin endpoint is an operator.
            identities: vec![Identity { scheme: "super", id: "operator" }],
            act: Act::Request { code: opcode::RECONFIG, record: &record },
        };
        let mut encoded = Vec::new();
        command.encode(&mut encoded);
        (tag, encoded)
    }

    /// Notes the end of an operator's change. True if the tag is an operator's.
    fn admin_answer(&mut self, wanted: u64, result: Result<String, String>) -> bool {
        if !is_admin_tag(wanted) {
            return false;
        }
        if self.lists.answered(wanted, result.is_ok()) {
            if let Err(error) = result {
                tracing::info!(error, "a change of the configured list; it will be asked again");
            }
            return true;
        }
        for waiting in &mut self.admin_waiting {
            if let What::Reconfigure { tag, answer } = &mut waiting.what
                && *tag == wanted
            {
                *answer = Some(result.clone());
            }
        }
        true
    }

    pub(super) fn admin_refused(&mut self, tag: u64, error: i32) -> bool {
        self.admin_answer(tag, Err(format!("the ensemble refused the change: error {error}")))
    }

    pub(super) fn admin_completed(&mut self, tag: u64) -> bool {
        let text = self.state.config_text();
        self.admin_answer(tag, Ok(text))
    }

    /// Answers the operators whose request is done, or whose time is up.
    pub(super) fn answer_admin(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.admin_waiting.is_empty() {
            return;
        }
        let is_leader = self.consensus.is_leader();
        let durable = self.consensus.checkpoint().index;
        let leader = self.leader;
        self.admin_waiting.retain_mut(|waiting| {
            let reply = match &mut waiting.what {
                What::Transfer if !is_leader && leader != 0 => {
                    Some(Ok(format!("replica {leader} leads")))
                }
                What::Checkpoint { index } if *index <= durable => {
                    Some(Ok(format!("durable up to index {durable}")))
                }
                What::Reconfigure { answer, .. } if answer.is_some() => answer.take(),
                _ if now.ms >= waiting.deadline_ms => Some(Err(
                    "no answer in time; look at the state of the ensemble before asking again"
                        .to_owned(),
                )),
                _ => None,
            };
            let Some(reply) = reply else { return true };
            actions.push(Action::AdminReply { ticket: waiting.ticket, reply });
            false
        });
    }
}
