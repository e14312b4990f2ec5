//! `millrace-sql`: SQL over what nodes serve.

fn main() {}
