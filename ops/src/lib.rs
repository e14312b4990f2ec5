//! What operators need of every service: settings, HTTP pages, metrics, sizes, hosts and times.
//!
//! This crate knows no service: a service brings its table of keys, its pages and its figures. It waits
//! for nothing but the sockets of [`http`], on threads of its own.

pub mod again;
pub mod form;
pub mod host;
pub mod http;
pub mod metrics;
pub mod notify;
pub mod settings;
pub mod size;
pub mod time;
