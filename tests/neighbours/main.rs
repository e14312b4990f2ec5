//! A polite client beside greedy, dying and silent ones: it gets no error that names a limit which it did
//! not reach itself, and its slowest reads are not slower than three times what they are alone.
//!
//! One module for each kind of neighbour. Every case runs by itself, alone and beside its neighbour in turn,
//! each time with a node of its own; [`street`] says how times are judged.

mod street;

mod cold;
mod faults;
mod held;
mod hung;
mod scans;
