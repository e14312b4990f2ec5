//! Real nodes in processes of their own, and what they promise. One module for each story; the name of
//! a test is its claim.

mod cluster_client;
mod cluster_handover;
mod cluster_join;
mod cluster_master;
mod cluster_pins;
mod cluster_reads;
mod coord_births;
mod coord_cli;
mod coord_crate_client;
mod coord_damage;
mod coord_ensemble;
mod coord_limits;
mod coord_malformed;
mod free_load;
mod hung_source;
mod leases;
mod lifecycle;
mod limits;
mod logs;
mod malformed;
mod memory;
mod pages;
mod paths;
mod pressure;
mod read_write;
mod rude;
mod single_flight;
mod sources;
mod store_credentials;
mod store_refusals;
mod store_sources;
mod store_staleness;
mod stores;
mod trust;
mod versions;
