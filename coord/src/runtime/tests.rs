//! The parts of the loop, each with what it touches made real: sockets, threads, the poll.

mod clients;
mod threads;
