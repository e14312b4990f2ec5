//! SQL over what nodes serve, by DataFusion.
