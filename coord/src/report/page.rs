//! What one GET is answered with.

use super::Effect;

/// An answer to a GET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Status of HTTP.
    pub status: u16,
    pub content_type: &'static str,
    pub body: String,
    /// What it asks of the replica.
    pub effect: Effect,
}

impl Page {
    pub(super) fn new(status: u16, content_type: &'static str, body: String) -> Page {
        Page { status, content_type, body, effect: Effect::None }
    }

    pub(super) fn json(status: u16, value: &serde_json::Value) -> Page {
        let body = serde_json::to_string_pretty(value).expect("values have text as keys");
        Page::new(status, "application/json", body)
    }
}
