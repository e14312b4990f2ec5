//! Claims about SQL through nodes, with real processes.
