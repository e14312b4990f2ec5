//! The harness behind `millrace bench`: one load generator for every server, so that a ratio compares
//! servers and not clients.
//!
//! Owns the load generator ([`load`]), the protocols it speaks ([`wire`]), the rivals and the node
//! it starts ([`rival`]) and the reports ([`report`]). Two facts always hold: every reply is
//! checked for success and for its exact length, and every server is read once with its bytes
//! compared before a clock starts. Flags and printing are left to the command line, which calls
//! [`read::read`], [`compare::compare`], [`scale::scale`], [`coord::measure`], [`ring::simulate`] and
//! [`store::compare`]. [`coord`] is for the coordination service and has servers, protocols and a generator of
//! its own: there replies are judged and may be refused, sessions are kept alive, and protocols answer by
//! themselves; [`ring`] has none of these, and simulates clusters; [`store`] reads as programs do, by the client
//! library and by that of the store.
//!
//! The generator speaks raw protocols and does not use the client library: it measures servers.
//! Modules in reading order:

pub mod address;
pub mod chart;
pub mod compare;
pub mod content;
pub mod control;
pub mod coord;
pub mod flash;
pub mod isolation;
pub mod keys;
pub mod load;
pub mod machine;
pub mod read;
mod reply;
pub mod report;
pub mod ring;
pub mod rival;
pub mod scale;
mod sockets;
pub mod store;
pub mod wire;
