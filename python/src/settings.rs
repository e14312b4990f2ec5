//! The settings of a client as keyword arguments of Python: durations are seconds.

use std::time::Duration;

use millrace_client::ClientConfig;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict};

/// Reads settings.
///
/// # Errors
/// TypeError for a setting that is not known, with those that are; ValueError for a time below 0.
pub(crate) fn read(settings: Option<&Bound<'_, PyDict>>) -> PyResult<ClientConfig> {
    let mut config = ClientConfig::new();
    let Some(settings) = settings else { return Ok(config) };
    for (name, value) in settings {
        let name: String = name.extract()?;
        let value = &value;
        match name.as_str() {
            "deadline" => config.deadline = seconds(&name, value)?,
            "connect_timeout" => config.connect_timeout = seconds(&name, value)?,
            "attempt_timeout" => config.attempt_timeout = seconds(&name, value)?,
            "connections_per_shard" => config.connections_per_shard = value.extract()?,
            "zone" => config.zone = value.extract()?,
            "fallback_roots" => config.fallback_roots = value.extract()?,
            "verify" => config.verify = truth(&name, value)?,
            "requests_in_flight_max" => config.requests_in_flight_max = value.extract()?,
            "local" => config.local = truth(&name, value)?,
            "leased_bytes_max" => config.leased_bytes_max = value.extract()?,
            "read_length_max" => config.read_length_max = value.extract()?,
            _ => {
                return Err(PyTypeError::new_err(format!(
                    "'{name}' is not a setting; choose among deadline, connect_timeout, attempt_timeout, \
                     connections_per_shard, zone, fallback_roots, verify, requests_in_flight_max, local, \
                     leased_bytes_max and read_length_max"
                )));
            }
        }
    }
    Ok(config)
}

/// Reads a duration in seconds, whole or not.
pub(crate) fn seconds(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Duration> {
    let seconds: f64 = value.extract()?;
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| PyValueError::new_err(format!("{name} is {seconds}; choose seconds above 0")))
}

fn truth(name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    let value = value.cast::<PyBool>();
    value
        .map(|value| value.is_true())
        .map_err(|_| PyTypeError::new_err(format!("{name} is True or False")))
}
