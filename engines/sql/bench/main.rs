//! `tpch-bench`: TPC-H through a node, beside the same files without one.

fn main() {}
