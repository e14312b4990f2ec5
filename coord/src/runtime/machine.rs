//! What the loop drives: a replica. It is a trait so that tests of the sockets can drive another one.

use crate::replica::{Action, ClientId, Event, Now, Replica};
use crate::report::{Effect, Snapshot, Wanted};

/// A state machine between sockets. See [`Replica`] for what each call means.
pub(crate) trait Machine {
    fn handle(&mut self, now: Now, event: Event<'_>, actions: &mut Vec<Action>);
    fn turn(&mut self, now: Now, actions: &mut Vec<Action>) -> u64;
    fn accepts(&self, client: ClientId) -> bool;
    fn output(&mut self, client: ClientId) -> Option<&mut Vec<u8>>;
    fn output_sent(&mut self, client: ClientId);
    fn report(&self, now: Now, wanted: Wanted) -> Snapshot;
    fn reset(&mut self, effect: Effect);
    fn shut_down(&mut self);
    fn may_stop(&self) -> bool;
}

/// A machine in one pass: the time, and the list for its actions.
pub(crate) struct World<'a, M> {
    pub(crate) now: Now,
    pub(crate) machine: &'a mut M,
    pub(crate) actions: &'a mut Vec<Action>,
}

impl<M: Machine> World<'_, M> {
    pub(crate) fn handle(&mut self, event: Event<'_>) {
        self.machine.handle(self.now, event, self.actions);
    }
}

impl Machine for Replica {
    fn handle(&mut self, now: Now, event: Event<'_>, actions: &mut Vec<Action>) {
        Replica::handle(self, now, event, actions);
    }

    fn turn(&mut self, now: Now, actions: &mut Vec<Action>) -> u64 {
        Replica::turn(self, now, actions)
    }

    fn accepts(&self, client: ClientId) -> bool {
        Replica::accepts(self, client)
    }

    fn output(&mut self, client: ClientId) -> Option<&mut Vec<u8>> {
        Replica::output(self, client)
    }

    fn output_sent(&mut self, client: ClientId) {
        Replica::output_sent(self, client);
    }

    fn report(&self, now: Now, wanted: Wanted) -> Snapshot {
        Replica::report(self, now, wanted)
    }

    fn reset(&mut self, effect: Effect) {
        Replica::reset(self, effect);
    }

    fn shut_down(&mut self) {
        Replica::shut_down(self);
    }

    fn may_stop(&self) -> bool {
        Replica::may_stop(self)
    }
}
