//! The parts of the loop, each with real sockets, threads and poll.

mod clients;
mod threads;
